"""Ops that need particular inputs; the others take (open, 4) everywhere."""

from __future__ import annotations

from benchmarks.coverage.inputs import Case, d, k

IMAGE = d(None, 8, 8, 4)
IMAGES = {"images": d(None, 6, 5, 3)}
COLOURS = d(None, 4, 3, low=0, high=1)
CUBE = d(None, 6, 6, 6, 4)
MATRIX = d(None, 4, 4)
DEFINITE = d(None, 4, 4, definite=True)
IDS = k([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 4])
WINDOW = {"strides": [1, 2, 2, 1], "padding": "SAME"}
POOL = {"ksize": [1, 3, 3, 1], "strides": [1, 2, 2, 1], "padding": "SAME"}
POOL3 = {"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "SAME"}
BOXES = {"boxes": d(20, 4, low=0, high=1), "scores": d(20, low=0, high=1)}
SIGNAL = d(None, 16)
DIVISION = {"x": d(None, 4), "y": d(None, 4, low=1, high=7)}
NORM = {
    "x": IMAGE,
    "scale": d(4, low=0.5, high=1.5),
    "offset": d(4),
    "mean": d(4),
    "variance": d(4, low=0.5, high=2),
}
UPDATE = {"tensor": d(6, 4), "indices": d(5, 1, low=0, high=5), "updates": d(5, 4)}
SPARSE = {"data": d(6, 4), "indices": d(12, low=0, high=5), "segment_ids": IDS}
SEGMENT = {"data": d(12, 4), "segment_ids": IDS}
UNSORTED = {"data": d(12, 4), "segment_ids": d(12, low=-1, high=4), "num_segments": k(5)}
QUANT = {"input": d(None, 4), "input_min": k(-3.1), "input_max": k(2.7)}
RFFT = {"input": SIGNAL, "fft_length": k([16])}
RFFT2 = {"input": d(None, 6, 8), "fft_length": k([6, 8])}
RFFT3 = {"input": d(None, 4, 6, 8), "fft_length": k([4, 6, 8])}
LSTM = {
    "x": d(None, 3),
    "cs_prev": d(None, 4),
    "h_prev": d(None, 4),
    "w": d(7, 16),
    "wci": d(4),
    "wcf": d(4),
    "wco": d(4),
    "b": d(16),
}
RESIZE = {"images": d(None, 6, 5, 3), "size": k([9, 7])}

CASES: dict[str, Case] = {
    "AccumulateNV2": Case({"inputs": [d(3, 4), d(3, 4)]}, {"shape": [3, 4]}),
    "AddN": Case({"inputs": [d(None, 4), d(None, 4), d(None, 4)]}),
    "AdjustContrastv2": Case({**IMAGES, "contrast_factor": k(1.7)}),
    "AdjustHue": Case({"images": COLOURS, "delta": k(0.3)}),
    "AdjustSaturation": Case({"images": COLOURS, "scale": k(1.6)}),
    "All": Case({"reduction_indices": k([1])}),
    "Angle": Case({"input": d(None, 4)}),
    "ApproxTopK": Case({"input": d(None, 16)}, {"k": 3}),
    "AudioSpectrogram": Case({"input": d(400, 1)}, {"window_size": 64, "stride": 32}),
    "AvgPool": Case({"value": IMAGE}, POOL),
    "AvgPool3D": Case({"input": CUBE}, POOL3),
    "BandedTriangularSolve": Case({"matrix": d(None, 2, 4, low=1, high=2), "rhs": d(None, 4, 3)}),
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), Case({"x": d(None, 3, 4), "y": d(None, 4, 5)})),
    "BatchToSpace": Case({"input": d(4, 3, 3, 2), "crops": k([[0, 1], [1, 0]])}, {"block_size": 2}),
    "BatchToSpaceND": Case({"input": d(4, 3, 3, 2), "block_shape": k([2, 2]), "crops": k([[0, 1], [1, 0]])}),
    "Betainc": Case(dict.fromkeys("ab", d(None, 4, low=0.5, high=3)) | {"x": d(None, 4, low=0, high=1)}),
    "BiasAdd": Case({"value": IMAGE, "bias": d(4)}),
    "BiasAddV1": Case({"value": IMAGE, "bias": d(4)}),
    "Bincount": Case({"arr": d(12, low=0, high=6), "size": k(5), "weights": k([])}),
    "Bitcast": Case({}, {"type": "int32"}),
    **dict.fromkeys(
        ("BlockLSTM", "BlockLSTMV2"), Case({**LSTM, "seq_len_max": k(3), "x": d(3, None, 3)}, types={"T": "float32"})
    ),
    "BroadcastArgs": Case({"s0": k([3, 1]), "s1": k([1, 4])}),
    "BroadcastTo": Case({"input": d(None, 1), "shape": k([3, 4])}),
    "Bucketize": Case({}, {"boundaries": [-1.0, 0.0, 2.5]}),
    "CTCBeamSearchDecoder": Case(
        {"inputs": d(6, 2, 5), "sequence_length": k([6, 4])}, {"beam_width": 4, "top_paths": 1}
    ),
    "CTCGreedyDecoder": Case({"inputs": d(6, 2, 5), "sequence_length": k([6, 4])}),
    "Cast": Case({}, {"DstT": "int32"}),
    "Cholesky": Case({"input": DEFINITE}),
    "ClipByValue": Case({"t": d(None, 4), "clip_value_min": k(1), "clip_value_max": k(2)}),
    "CombinedNonMaxSuppression": Case(
        {
            "boxes": d(2, 20, 1, 4, low=0, high=1),
            "scores": d(2, 20, 3, low=0, high=1),
            "max_output_size_per_class": k(4),
            "max_total_size": k(6),
            "iou_threshold": k(0.5),
            "score_threshold": k(0.2),
        }
    ),
    "Concat": Case({"values": [d(None, 4), d(None, 3)]}),
    "ConcatOffset": Case({"shape": [k([2, 3]), k([2, 5])]}),
    "ConcatV2": Case({"values": [d(None, 4), d(None, 3)]}),
    "ConjugateTranspose": Case({"perm": k([1, 0])}),
    "Conv2D": Case({"input": IMAGE, "filter": d(3, 3, 4, 5)}, WINDOW),
    "Conv2DBackpropInput": Case(
        {"input_sizes": k([2, 8, 8, 4]), "filter": d(3, 3, 4, 5), "out_backprop": d(2, 4, 4, 5)}, WINDOW
    ),
    "Conv2DBackpropInputV2": Case(
        {"input": d(2, 8, 8, 4), "filter": d(3, 3, 4, 5), "out_backprop": d(2, 4, 4, 5)}, WINDOW
    ),
    "Conv3D": Case({"input": CUBE, "filter": d(2, 2, 2, 4, 3)}, {"strides": [1, 2, 2, 2, 1], "padding": "SAME"}),
    "Conv3DBackpropInputV2": Case(
        {"input_sizes": k([2, 6, 6, 6, 4]), "filter": d(2, 2, 2, 4, 3), "out_backprop": d(2, 3, 3, 3, 3)},
        {"strides": [1, 2, 2, 2, 1], "padding": "SAME"},
    ),
    "CropAndResize": Case(
        {"image": IMAGE, "boxes": d(5, 4, low=0, high=1), "box_ind": k([0, 0, 0, 0, 0]), "crop_size": k([3, 4])}
    ),
    "Cross": Case({"a": d(None, 3), "b": d(None, 3)}),
    "CumulativeLogsumexp": Case({"axis": k(1)}),
    "DataFormatDimMap": Case({"x": d(None, low=0, high=3)}),
    "DataFormatVecPermute": Case({"x": d(4)}),
    "DenseBincount": Case({"input": d(12, low=0, high=6), "size": k(5), "weights": k([])}),
    "DepthToSpace": Case({"input": IMAGE}, {"block_size": 2}),
    "DepthwiseConv2dNative": Case({"input": IMAGE, "filter": d(3, 3, 4, 2)}, WINDOW),
    "DepthwiseConv2dNativeBackpropInput": Case(
        {"input_sizes": k([2, 8, 8, 4]), "filter": d(3, 3, 4, 2), "out_backprop": d(2, 4, 4, 8)}, WINDOW
    ),
    "Diag": Case({"diagonal": d(4)}),
    "DiagPart": Case({"input": d(4, 4)}),
    "Dilation2D": Case(
        {"input": IMAGE, "filter": d(3, 3, 4)}, {"strides": [1, 1, 1, 1], "rates": [1, 1, 1, 1], "padding": "SAME"}
    ),
    **dict.fromkeys(("Div", "FloorDiv", "FloorMod", "Mod", "TruncateDiv", "TruncateMod"), Case(DIVISION)),
    "DrawBoundingBoxes": Case({**IMAGES, "boxes": d(None, 2, 4, low=0, high=1)}),
    "DrawBoundingBoxesV2": Case({**IMAGES, "boxes": d(None, 2, 4, low=0, high=1), "colors": d(2, 3)}),
    "DynamicPartition": Case({"data": d(12, 4), "partitions": d(12, low=0, high=1)}, {"num_partitions": 2}),
    "DynamicStitch": Case({"indices": [k([0, 2]), k([1, 3])], "data": [d(2, 4), d(2, 4)]}),
    "Eig": Case({"input": MATRIX}, {"Tout": "complex64"}),
    "Einsum": Case({"inputs": [d(None, 4), d(4, 5)]}, {"equation": "ab,bc->ca"}),
    "EnsureShape": Case({}, {"shape": [None, 4]}),
    "EuclideanNorm": Case({"reduction_indices": k([1])}),
    "ExtractGlimpse": Case({"input": IMAGE, "size": k([3, 3]), "offsets": d(None, 2, low=-1, high=1)}),
    "ExtractGlimpseV2": Case({"input": IMAGE, "size": k([3, 3]), "offsets": d(None, 2, low=-1, high=1)}),
    "ExtractImagePatches": Case(
        {"images": IMAGE}, {"ksizes": [1, 3, 3, 1], "strides": [1, 2, 2, 1], "rates": [1, 1, 1, 1], "padding": "SAME"}
    ),
    "ExtractVolumePatches": Case(
        {"input": CUBE}, {"ksizes": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "VALID"}
    ),
    "FFT2D": Case({"input": d(None, 4, 6)}),
    "FFT3D": Case({"input": d(None, 4, 6, 3)}),
    "IFFT2D": Case({"input": d(None, 4, 6)}),
    "IFFT3D": Case({"input": d(None, 4, 6, 3)}),
    **dict.fromkeys(("FFTND", "IFFTND"), Case({"input": d(None, 4, 6), "fft_length": k([4, 6]), "axes": k([1, 2])})),
    **dict.fromkeys(("RFFTND", "IRFFTND"), Case({"input": d(None, 4, 6), "fft_length": k([4, 6]), "axes": k([1, 2])})),
    "RFFT": Case(RFFT),
    "RFFT2D": Case(RFFT2),
    "RFFT3D": Case(RFFT3),
    "IRFFT": Case({"input": d(None, 9), "fft_length": k([16])}),
    "IRFFT2D": Case({"input": d(None, 6, 5), "fft_length": k([6, 8])}),
    "IRFFT3D": Case({"input": d(None, 4, 6, 5), "fft_length": k([4, 6, 8])}),
    "FakeQuantWithMinMaxArgs": Case({}, {"min": -3.1, "max": 2.7}),
    "FakeQuantWithMinMaxVars": Case({"inputs": d(None, 4), "min": k(-3.1), "max": k(2.7)}),
    "FakeQuantWithMinMaxVarsPerChannel": Case(
        {"inputs": d(None, 4), "min": k([-3.1, -1, 0, -2]), "max": k([2.7, 1, 4, 0.5])}
    ),
    "Fill": Case({"dims": k([3, 4]), "value": d()}),
    "FusedBatchNorm": Case(NORM, {"is_training": False}, outputs=1),
    "FusedBatchNormV2": Case(NORM, {"is_training": False}, outputs=1),
    "FusedBatchNormV3": Case(NORM, {"is_training": False}, outputs=1),
    "FusedPadConv2D": Case(
        {"input": IMAGE, "paddings": k([[0, 0], [1, 1], [1, 1], [0, 0]]), "filter": d(3, 3, 4, 5)},
        {"mode": "REFLECT", "strides": [1, 1, 1, 1], "padding": "VALID"},
    ),
    "FusedResizeAndPadConv2D": Case(
        {
            "input": IMAGE,
            "size": k([10, 9]),
            "paddings": k([[0, 0], [1, 1], [1, 1], [0, 0]]),
            "filter": d(3, 3, 4, 5),
        },
        {"mode": "REFLECT", "strides": [1, 1, 1, 1], "padding": "VALID"},
    ),
    "GRUBlockCell": Case(
        {
            "x": d(None, 3),
            "h_prev": d(None, 4),
            "w_ru": d(7, 8),
            "w_c": d(7, 4),
            "b_ru": d(8),
            "b_c": d(4),
        }
    ),
    "Gather": Case({"params": d(6, 4), "indices": d(None, low=0, high=5)}),
    "GatherNd": Case({"params": d(6, 4), "indices": d(None, 1, low=0, high=5)}),
    "GatherV2": Case({"params": d(6, 4), "indices": d(None, low=0, high=3)}),
    "GenerateBoundingBoxProposals": Case(
        {
            "scores": d(2, 4, 4, 3, low=0, high=1),
            "bbox_deltas": d(2, 4, 4, 12),
            "image_info": k([[64, 64, 1, 64, 64]] * 2),
            "anchors": k([[[0, 0, 16, 16] * 3] * 4] * 4),
            "nms_threshold": k(0.7),
            "pre_nms_topn": k(20),
            "min_size": k(4),
        }
    ),
    "HSVToRGB": Case({"images": COLOURS}),
    "RGBToHSV": Case({"images": COLOURS}),
    "HistogramFixedWidth": Case({"values": d(20), "value_range": k([-2, 2]), "nbins": k(5)}),
    "ImageProjectiveTransformV2": Case(
        {**IMAGES, "transforms": k([[1, 0.2, 1, 0, 1, -1, 0, 0]]), "output_shape": k([6, 5])},
        {"interpolation": "BILINEAR"},
    ),
    "ImageProjectiveTransformV3": Case(
        {
            **IMAGES,
            "transforms": k([[1, 0.2, 1, 0, 1, -1, 0, 0]]),
            "output_shape": k([6, 5]),
            "fill_value": k(0.5),
        },
        {"interpolation": "BILINEAR"},
    ),
    "InTopK": Case({"predictions": d(None, 6), "targets": d(None, low=0, high=5)}, {"k": 2}),
    "InTopKV2": Case({"predictions": d(None, 6), "targets": d(None, low=0, high=5), "k": k(2)}),
    "InvertPermutation": Case({"x": d(6, permutation=True)}),
    "IdentityN": Case({"input": [d(None, 4), d(None, 3)]}),
    "IsotonicRegression": Case({"input": d(None, 4)}),
    "LRN": Case({"input": IMAGE}),
    "LSTMBlockCell": Case(LSTM),
    "LeftShift": Case({"x": d(None, 4, low=0, high=99), "y": d(None, 4, low=0, high=3)}, types={"T": "int32"}),
    "RightShift": Case({"x": d(None, 4), "y": d(None, 4, low=0, high=3)}, types={"T": "int32"}),
    "LinSpace": Case({"start": d(), "stop": d(), "num": k(5)}),
    "ListDiff": Case({"x": d(12), "y": d(4)}),
    "LogMatrixDeterminant": Case({"input": DEFINITE}),
    "LowerBound": Case({"sorted_inputs": d(2, 6, ascending=True), "values": d(2, 4)}),
    "UpperBound": Case({"sorted_inputs": d(2, 6, ascending=True), "values": d(2, 4)}),
    "Lu": Case({"input": DEFINITE}),
    "MatMul": Case({"a": d(None, 4), "b": d(4, 5)}),
    "MatrixBandPart": Case({"input": MATRIX, "num_lower": k(1), "num_upper": k(0)}),
    **dict.fromkeys(("MatrixDeterminant", "MatrixInverse"), Case({"input": d(None, 3, 3, definite=True)})),
    "MatrixSquareRoot": Case({"input": DEFINITE}),
    "MatrixLogarithm": Case({"input": DEFINITE}),
    "MatrixDiag": Case({"diagonal": d(None, 4)}),
    **dict.fromkeys(
        ("MatrixDiagV2", "MatrixDiagV3"),
        Case({"diagonal": d(None, 4), "k": k(0), "num_rows": k(-1), "num_cols": k(-1), "padding_value": k(0)}),
    ),
    "MatrixDiagPart": Case({"input": MATRIX}),
    **dict.fromkeys(
        ("MatrixDiagPartV2", "MatrixDiagPartV3"), Case({"input": MATRIX, "k": k(1), "padding_value": k(0)})
    ),
    "MatrixSetDiag": Case({"input": MATRIX, "diagonal": d(None, 4)}),
    **dict.fromkeys(("MatrixSetDiagV2", "MatrixSetDiagV3"), Case({"input": MATRIX, "diagonal": d(None, 4), "k": k(0)})),
    "MatrixSolve": Case({"matrix": d(None, 3, 3, definite=True), "rhs": d(None, 3, 2)}),
    "MatrixTriangularSolve": Case({"matrix": DEFINITE, "rhs": d(None, 4, 2)}),
    "MaxPool": Case({"input": IMAGE}, POOL),
    "MaxPool3D": Case({"input": CUBE}, POOL3),
    "MaxPoolV2": Case({"input": IMAGE, "ksize": k([1, 3, 3, 1]), "strides": k([1, 2, 2, 1])}, {"padding": "SAME"}),
    "MaxPoolWithArgmax": Case({"input": IMAGE}, {**POOL, "Targmax": "int64"}),
    "Mfcc": Case({"spectrogram": d(1, 5, 129, low=0, high=1), "sample_rate": k(8000)}),
    "MirrorPad": Case({"input": d(None, 4), "paddings": k([[0, 0], [1, 2]])}, {"mode": "SYMMETRIC"}),
    "NearestNeighbors": Case({"points": d(None, 4), "centers": d(6, 4), "k": k(2)}),
    "NonMaxSuppression": Case({**BOXES, "max_output_size": k(5)}),
    "NonMaxSuppressionV2": Case({**BOXES, "max_output_size": k(5), "iou_threshold": k(0.5)}),
    **dict.fromkeys(
        ("NonMaxSuppressionV3", "NonMaxSuppressionV4"),
        Case({**BOXES, "max_output_size": k(5), "iou_threshold": k(0.5), "score_threshold": k(0.1)}),
    ),
    "NonMaxSuppressionV5": Case(
        {
            **BOXES,
            "max_output_size": k(5),
            "iou_threshold": k(0.5),
            "score_threshold": k(0.1),
            "soft_nms_sigma": k(0.5),
        }
    ),
    "NonMaxSuppressionWithOverlaps": Case(
        {
            "overlaps": d(20, 20, low=0, high=1),
            "scores": d(20, low=0, high=1),
            "max_output_size": k(5),
            "overlap_threshold": k(0.5),
            "score_threshold": k(0.1),
        }
    ),
    "NthElement": Case({"input": d(None, 6), "n": k(2)}),
    "OneHot": Case({"indices": d(None, 4, low=-1, high=5), "depth": k(5), "on_value": k(1), "off_value": k(0)}),
    "Pack": Case({"values": [d(None, 4), d(None, 4)]}, {"axis": 1}),
    "PadV2": Case({"input": d(None, 4), "constant_values": k(2)}),
    "ParallelConcat": Case({"values": [d(1, 4), d(1, 4)]}, {"shape": [2, 4]}),
    "ParallelDynamicStitch": Case({"indices": [k([0, 2]), k([1, 3])], "data": [d(2, 4), d(2, 4)]}),
    "Pow": Case({"x": d(None, 4, low=1, high=3), "y": d(None, 4, low=0, high=3)}),
    "QuantizeAndDequantizeV2": Case(QUANT, {"range_given": True}),
    "QuantizeAndDequantizeV3": Case({**QUANT, "num_bits": k(8)}, {"range_given": True}),
    "QuantizeAndDequantizeV4": Case(QUANT, {"range_given": True}),
    "Range": Case({"start": k(1), "limit": k(9), "delta": k(2)}),
    "Reshape": Case({"shape": k([-1, 2])}),
    "ResizeArea": Case(RESIZE),
    "ResizeBicubic": Case(RESIZE, {"half_pixel_centers": True}),
    "ResizeBilinear": Case(RESIZE, {"half_pixel_centers": True}),
    "ResizeNearestNeighbor": Case(RESIZE, {"half_pixel_centers": True}),
    "Reverse": Case({"tensor": d(None, 4), "dims": k([False, True])}),
    "ReverseSequence": Case({"input": d(3, 6), "seq_lengths": k([2, 6, 0])}, {"seq_dim": 1}),
    "ReverseV2": Case({"tensor": d(None, 4), "axis": k([1])}),
    "Roll": Case({"input": d(None, 4), "shift": k([1]), "axis": k([1])}),
    "ScaleAndTranslate": Case({**IMAGES, "size": k([9, 7]), "scale": k([1.5, 1.4]), "translation": k([0, 0])}),
    "ScatterNd": Case({"indices": d(8, 1, low=0, high=5), "updates": d(8, 4), "shape": k([6, 4])}),
    **dict.fromkeys(("SegmentMax", "SegmentMean", "SegmentMin", "SegmentProd", "SegmentSum"), Case(SEGMENT)),
    **dict.fromkeys(
        ("SegmentMaxV2", "SegmentMinV2", "SegmentProdV2", "SegmentSumV2"), Case({**SEGMENT, "num_segments": k(5)})
    ),
    "Select": Case({"condition": d(None, 4), "t": d(None, 4), "e": d(None, 4)}),
    "SelectV2": Case({"condition": d(None, 4), "t": d(None, 4), "e": d(None, 4)}),
    **dict.fromkeys(("SelfAdjointEigV2", "Qr", "Svd"), Case({"input": DEFINITE})),
    "ShapeN": Case({"input": [d(None, 4), d(None, 3)]}),
    "Slice": Case({"input": d(None, 4), "begin": k([0, 1]), "size": k([-1, 2])}),
    "SparseSoftmaxCrossEntropyWithLogits": Case({"features": d(None, 6), "labels": d(None, low=0, high=5)}, outputs=1),
    "SoftmaxCrossEntropyWithLogits": Case({"features": d(None, 6), "labels": d(None, 6, low=0, high=1)}, outputs=1),
    "SpaceToBatch": Case({"input": IMAGE, "paddings": k([[0, 0], [1, 1]])}, {"block_size": 2}),
    "SpaceToBatchND": Case({"input": IMAGE, "block_shape": k([2, 2]), "paddings": k([[0, 0], [1, 1]])}),
    "SpaceToDepth": Case({"input": IMAGE}, {"block_size": 2}),
    "SparseMatMul": Case({"a": d(None, 4), "b": d(4, 5)}),
    "SparseSoftmax": Case({"sp_indices": k([[0, 1], [1, 0]]), "sp_values": d(2), "sp_shape": k([2, 3])}),
    "SparseToDense": Case(
        {"sparse_indices": k([[0, 1], [1, 0]]), "output_shape": k([2, 3]), "sparse_values": d(2), "default_value": k(0)}
    ),
    **dict.fromkeys(("SparseSegmentMean", "SparseSegmentSqrtN", "SparseSegmentSum"), Case(SPARSE)),
    **dict.fromkeys(
        ("SparseSegmentMeanWithNumSegments", "SparseSegmentSqrtNWithNumSegments", "SparseSegmentSumWithNumSegments"),
        Case({**SPARSE, "num_segments": k(6)}),
    ),
    "Split": Case({"split_dim": k(1), "value": d(None, 4)}, {"num_split": 2}),
    "SplitV": Case({"value": d(None, 4), "size_splits": k([1, 3]), "split_dim": k(1)}, {"num_split": 2}),
    "Squeeze": Case({"input": d(None, 1, 4)}, {"axis": [1]}),
    "StridedSlice": Case(
        {"input": d(None, 6), "begin": k([0, 4]), "end": k([0, 0]), "strides": k([1, -2])},
        {"end_mask": 1, "begin_mask": 1},
    ),
    **{f"TensorScatter{kind}": Case(UPDATE) for kind in ("Add", "Max", "Min", "Sub", "Update")},
    "TensorStridedSliceUpdate": Case(
        {"input": d(3, 6), "begin": k([0, 1]), "end": k([3, 5]), "strides": k([1, 2]), "value": d(3, 2)}
    ),
    "ToBool": Case({"input": d()}),
    "TopKV2": Case({"input": d(None, 6), "k": k(3)}),
    "TridiagonalMatMul": Case(
        {"superdiag": d(None, 1, 4), "maindiag": d(None, 1, 4), "subdiag": d(None, 1, 4), "rhs": d(None, 4, 2)}
    ),
    "TridiagonalSolve": Case({"diagonals": d(None, 3, 4, low=1, high=2), "rhs": d(None, 4, 2)}),
    "Unique": Case({"x": d(12)}),
    "UniqueWithCounts": Case({"x": d(12)}),
    "UniqueV2": Case({"x": d(12), "axis": k([0])}),
    "UniqueWithCountsV2": Case({"x": d(12), "axis": k([0])}),
    "Unpack": Case({"value": d(None, 4)}, {"num": 4, "axis": 1}),
    "UnravelIndex": Case({"indices": d(None, low=0, high=11), "dims": k([3, 4])}),
    **{f"UnsortedSegment{kind}": Case(UNSORTED) for kind in ("Max", "Min", "Prod", "Sum")},
    **dict.fromkeys(("Polygamma", "Zeta"), Case({n: d(None, 4, low=1, high=3) for n in ("a", "x", "q")})),
    **dict.fromkeys(("Igamma", "Igammac"), Case({"a": d(None, 4, low=0.5, high=3), "x": d(None, 4, low=0.1, high=4)})),
}
