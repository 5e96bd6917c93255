"""Which parameters of a model are scale-invariant, and in which groups: found from its behaviour, not from names."""

from lit_sphere.groups.find import Granularity, Group, find_groups

__all__ = ["Granularity", "Group", "find_groups"]
