"""Before the run: credits are held; after it, they are settled, released, or expire."""
