"""Adapting a network to one's own unlabelled photos, and telling without labels whether it helped."""
