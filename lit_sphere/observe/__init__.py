"""Watching a Trainer: groups of its module, optimizer steps, epoch curves, passes over data, snapshots, publishing.

Callbacks decide when and what; how a run is watched without changing it stands here, once.
"""
