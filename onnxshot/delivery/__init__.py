"""Deliver the results of a run: the model, its record, and artifacts of other runtimes.

Every file is written to a temporary folder, verified there, and only then moved to its place:

    write_results      writes the files, in that order: the model file (through `graph.save`), artifacts, the record
    artifacts          makes and verifies the artifacts of other runtimes (OpenVINO IR, TensorRT engine)
    record             makes the record, in the model's metadata and in a file beside it; replays read it
    portability        runs a portable model in every runtime, and compares it with a model for one target
    input_files        lists the files that a run reads
    output_files       lists the files that a run will write
    stage_files        lists both for a run of several stages, and names the models between them
    overwrite_checks   decides whether a file that exists already may be replaced
"""
