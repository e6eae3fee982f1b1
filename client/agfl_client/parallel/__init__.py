"""Several devices of one owner that train a round together: the node is rank 0, the others are its processes."""
