"""Find out what this machine can run: `machine` lists processor, GPUs and packages, `runtime_trials` has test models.

The verb is api/doctor.py. Nothing here reads a model of the user.
"""
