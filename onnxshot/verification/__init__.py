"""The proof: compare a written file with the float model, output by output and tensor by tensor, and time both.

Start with `proof`. Nothing here changes a model or knows how it was made.
"""
