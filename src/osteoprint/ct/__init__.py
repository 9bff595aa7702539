"""A scan becomes bones: reading, isolation, surfaces, phantoms."""
