"""C4: the chooser against a table worked out by hand, over SD 1.5 and SDXL, four sizes of GPU and 1 to 8 of them.

Nothing here calls the code that chooses; BY_HAND is what the arithmetic in the comments comes to.
"""
