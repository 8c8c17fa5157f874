"""The proof: a written file is compared with the float model it was made from."""
