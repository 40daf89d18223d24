"""What the machine has that computes, and how its memory is given out."""
