"""``make demo``: the main job on real pages, for five customers, with every invariant checked."""
