"""Which parameters of a model are scale-invariant, and in which groups: found from its behaviour, not from names."""

from lit_sphere.groups.find import Group, GroupGranularity, GroupSearch, find_groups, no_groups, search_groups
from lit_sphere.optim.granularity import Granularity

__all__ = ["Granularity", "Group", "GroupGranularity", "GroupSearch", "find_groups", "no_groups", "search_groups"]
