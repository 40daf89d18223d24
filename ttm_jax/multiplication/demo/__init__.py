"""Parts of the demo: what is typed, what the network did with it, and the pictures of that.

problem -> trace -> terminal, picture or page
"""
