"""Files that are whole or not there, and folders that one process holds."""

from lit_sphere.files.claims import FolderInUse, claim_folder, release_folders
from lit_sphere.files.whole import part_of, write_whole

__all__ = ["FolderInUse", "claim_folder", "part_of", "release_folders", "write_whole"]
