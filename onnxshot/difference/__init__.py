"""Two files of a model side by side: what differs, layer by layer, and what that did."""
