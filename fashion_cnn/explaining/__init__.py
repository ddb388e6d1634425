"""Why a network says what it says of an image: the pixels that mattered, and the training images most like it."""
