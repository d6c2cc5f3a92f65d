"""Image bytes to pixels, and the random changes to them."""
