"""What a product lost: the steps of a rule again, with counts."""
