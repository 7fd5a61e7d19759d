"""Training data: folders of pictures with captions, what is wrong in them, and the order in which they are shown."""
