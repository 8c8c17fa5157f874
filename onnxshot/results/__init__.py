"""What the public verbs return: a model together with the report that proves it.

`quantized`, `pruned`, `shrunk` and `compressed` hold one kind of result each. They are values: nothing here runs a
model.
"""
