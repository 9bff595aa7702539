"""Bones become X-ray images, and films become comparable to them."""
