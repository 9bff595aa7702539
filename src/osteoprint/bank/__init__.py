"""Bones, meshes and fingerprints: kept, searched, judged."""
