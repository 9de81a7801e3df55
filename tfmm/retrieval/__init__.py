"""Items that are similar to an item: by one look at the index, or by a SavedModel for TF Serving."""
