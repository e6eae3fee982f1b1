"""What the node was asked for and what left, in lines that nobody changes unseen."""
