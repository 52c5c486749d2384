"""Sources → deduplicated pool → disjoint D_train, D_ref, D_val → tokens and response mask."""
