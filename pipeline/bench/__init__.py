"""`graftrt bench`: run times of a stitched model beside those of the original in TensorFlow, without and with XLA."""
