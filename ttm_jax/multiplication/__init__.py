"""The multiplication of numbers, digit by digit: problems, model, losses, and what is done with a trained one."""
