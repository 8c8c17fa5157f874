"""The stages of a quantization: each is a function from values to a value.

The float model:   prepare_model -> Prepared, open_samples -> Samples, check_normalized -> Reference, settle_lstms
The plan:          observe -> RunStatistics, improve_plan -> FinalPlan
The int8 model:    rewrite_model -> Rewritten, make_quantized -> Quantized (all stages up to here, with a report)
The proof:         prevent_growth, prove_quantized, Alternatives

`api/quantize.py` calls the first two, `make_quantized` and the proof; `make_quantized` calls those between, because
goals and alternatives run them again with other recipes; a better result takes the place of the first.
Start reading there.
"""
