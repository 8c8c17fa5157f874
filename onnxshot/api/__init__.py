"""The public verbs, one per file. No other folder knows in which order stages run.

Start with `quantize`. A verb takes paths and options, calls the stages, and returns a value of results/. Printing is
left to cli/.
"""
