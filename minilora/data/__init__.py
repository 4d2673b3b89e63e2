"""Names, the pretrained base, and the tasks made from them."""
