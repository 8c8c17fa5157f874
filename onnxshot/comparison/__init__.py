"""Decide how the outputs of two models are compared, so that only the effect of compression is measured.

Random operators draw the same numbers in both models (`random_nodes`). TopK, NonMaxSuppression and similar nodes pick
the same elements in both (`ordering_nodes`, `pick_overlap`). Parts of outputs that copy inputs are left out
(`copied_outputs`). `comparison_setup` combines the three. The other modules measure: SQNR per sample and output
(`balanced_sqnr`), its spread over samples (`sample_spread`), quiet channels (`output_parts`) and agreement of class
scores (`class_scores`).
"""
