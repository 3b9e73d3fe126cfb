"""The demonstration: shipped images, three configs, and what runs them."""
