"""The operators of ai.onnx.ml against ONNX Runtime, as one-node models through the whole pipeline."""

import equinox as eqx
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnxeqx

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((6, 4)).astype(np.float32)
TEXT = np.array([["a", "b"], ["c", "a"]], object)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def model_of(op_type: str, inputs: dict, outputs: int = 1, version: int = 3, **attributes) -> onnx.ModelProto:
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, list(inputs), names, domain="ai.onnx.ml", **attributes)
    declared = [
        helper.make_tensor_value_info(
            name, TensorProto.STRING if x.dtype == object else helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in inputs.items()
    ]
    graph = helper.make_graph([node], "g", declared, [onnx.ValueInfoProto(name=name) for name in names])
    opsets = [helper.make_opsetid("ai.onnx.ml", version), helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def check(op_type: str, *inputs, outputs: int = 1, version: int = 3, jit: bool = True, **attributes) -> None:
    given = {f"x{i}": np.asarray(x) for i, x in enumerate(inputs)}
    model = model_of(op_type, given, outputs, version, **attributes)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)
    live = onnxeqx.load_model(model)
    for call in (live, eqx.filter_jit(live)) if jit else (live,):
        results = call(**given)
        for result, wanted in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
            if isinstance(wanted, list):
                for row, other in zip(result, wanted, strict=True):
                    assert row.keys() == other.keys()
                    np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)
            elif np.asarray(wanted).dtype.kind in "OU":
                np.testing.assert_array_equal(result, np.asarray(wanted, object))
            else:
                assert result.shape == wanted.shape
                np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


# Encoders and scalers.


def test_array_feature_extractor():
    check("ArrayFeatureExtractor", X, np.array([2, 0, 2]))
    check("ArrayFeatureExtractor", X[0], np.array([1, 3]))


def test_binarizer():
    check("Binarizer", X, threshold=0.3)


def test_scaler():
    check("Scaler", X, offset=[0.1, 0.2, 0.3, 0.4], scale=[1.0, 2.0, 3.0, 4.0])
    check("Scaler", X, offset=[0.5], scale=[2.0])


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm):
    check("Normalizer", X, norm=norm)


def test_imputer():
    gaps = np.where(X > 0.5, np.nan, X).astype(np.float32)
    check("Imputer", gaps, imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan"))
    check("Imputer", np.array([[1, 0], [0, 2]]), imputed_value_int64s=[7], replaced_value_int64=0)


def test_feature_vectorizer():
    check("FeatureVectorizer", X, X[:, :2], inputdimensions=[4, 2])


def test_one_hot_encoder():
    check("OneHotEncoder", np.array([[1, 3], [2, 9]]), cats_int64s=[1, 2, 3])
    check("OneHotEncoder", TEXT, cats_strings=["a", "b"], jit=False)


def test_category_mapper():
    check("CategoryMapper", TEXT, cats_int64s=[10, 20], cats_strings=["a", "b"], jit=False)
    check("CategoryMapper", np.array([10, 20, 30]), cats_int64s=[10, 20], cats_strings=["a", "b"], jit=False)


def test_label_encoders():
    check("LabelEncoder", np.array([1, 2, 5]), keys_int64s=[1, 2], values_floats=[0.5, 1.5], default_float=-2.0)
    check(
        "LabelEncoder",
        np.array([1.0, np.nan], np.float32),
        version=4,
        keys_floats=[float("nan"), 1.0],
        values_int64s=[3, 4],
    )
    check("LabelEncoder", TEXT, keys_strings=["a", "b"], values_int64s=[5, 6], jit=False)
    check("LabelEncoder", np.array([1, 4]), keys_int64s=[1], values_strings=["one"], jit=False)
    check("LabelEncoder", TEXT, version=1, classes_strings=["b", "a"], jit=False)


# Models.


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
def test_linear_models(transform):
    weights = GENERATOR.standard_normal(12).astype(np.float32).tolist()
    check("LinearRegressor", X, coefficients=weights, intercepts=[0.1, 0.2, 0.3], targets=3, post_transform=transform)
    check(
        "LinearClassifier",
        X,
        outputs=2,
        coefficients=weights,
        intercepts=[0.1, 0.2, 0.3],
        classlabels_ints=[5, 7, 9],
        post_transform=transform,
    )


def test_linear_classifiers_of_text_and_of_two_classes():
    weights = GENERATOR.standard_normal(8).astype(np.float32).tolist()
    labels = {"classlabels_strings": ["no", "yes"], "intercepts": [0.1, -0.1]}
    check("LinearClassifier", X, outputs=2, coefficients=weights, jit=False, **labels)
    check("LinearClassifier", X, outputs=2, coefficients=weights[:4], intercepts=[0.1], classlabels_ints=[0, 1])


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vector_regressors(kernel):
    vectors, weights = GENERATOR.standard_normal((3, 4)).astype(np.float32), [0.5, -0.25, 0.75]
    options = {"kernel_type": kernel, "kernel_params": [0.3, 0.1, 2.0], "rho": [0.2], "n_supports": 3}
    check("SVMRegressor", X, support_vectors=vectors.reshape(-1).tolist(), coefficients=weights, **options)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF"])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_support_vector_classifiers(kernel, probabilities, classes):
    counts, pairs = [2, 2, 1][:classes], classes * (classes - 1) // 2
    generator = np.random.default_rng(classes)
    options = {
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.0, 3.0],
        "support_vectors": generator.standard_normal(4 * sum(counts)).astype(np.float32).tolist(),
        "coefficients": generator.standard_normal((classes - 1) * sum(counts)).astype(np.float32).tolist(),
        "vectors_per_class": counts,
        "rho": generator.standard_normal(pairs).astype(np.float32).tolist(),
        "classlabels_ints": list(range(classes)),
    }
    if probabilities:
        options |= {"prob_a": [-1.0] * pairs, "prob_b": [0.1] * pairs}
    check("SVMClassifier", X, outputs=2, **options)


def trees(modes=("BRANCH_LEQ", "BRANCH_GT")) -> dict:
    """Two trees: a root with two leaves, and a root whose true child is a leaf and whose false child splits again."""
    return {
        "nodes_treeids": [0, 0, 0, 1, 1, 1, 1, 1],
        "nodes_nodeids": [0, 1, 2, 0, 1, 2, 3, 4],
        "nodes_featureids": [0, 0, 0, 1, 0, 2, 0, 0],
        "nodes_values": [0.1, 0.0, 0.0, -0.2, 0.0, 0.3, 0.0, 0.0],
        "nodes_modes": [modes[0], "LEAF", "LEAF", modes[1], "LEAF", modes[0], "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0, 1, 0, 3, 0, 0],
        "nodes_falsenodeids": [2, 0, 0, 2, 0, 4, 0, 0],
    }


LEAVES = {"treeids": [0, 0, 1, 1, 1], "nodeids": [1, 2, 1, 3, 4]}


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize(
    "modes", [("BRANCH_LEQ", "BRANCH_GT"), ("BRANCH_LT", "BRANCH_GTE"), ("BRANCH_EQ", "BRANCH_NEQ")]
)
def test_tree_regressors(aggregate, modes):
    targets = {f"target_{key}": value for key, value in LEAVES.items()}
    targets |= {"target_ids": [0, 1, 0, 0, 1], "target_weights": [1.0, -2.0, 0.5, 0.25, 4.0]}
    check("TreeEnsembleRegressor", X, n_targets=2, aggregate_function=aggregate, **trees(modes), **targets)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("version", [1, 3])
def test_tree_classifiers(transform, version):
    classes = {f"class_{key}": value for key, value in LEAVES.items()}
    classes |= {"class_ids": [0, 1, 2, 0, 1], "class_weights": [1.0, 2.0, 0.5, 0.25, 4.0]}
    options = {"classlabels_int64s": [4, 5, 6], "post_transform": transform, "base_values": [0.1, 0.2, 0.3]}
    check("TreeEnsembleClassifier", X, outputs=2, version=version, **trees(), **classes, **options)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3, 0.4, 0.5], [1.0, -2.0, 0.5, -0.25, 4.0]])
@pytest.mark.parametrize("base", [[], [0.2]])
def test_tree_classifiers_with_one_score_for_two_classes(transform, weights, base):
    classes = {f"class_{key}": value for key, value in LEAVES.items()}
    classes |= {"class_ids": [0] * 5, "class_weights": weights, "classlabels_int64s": [0, 1]}
    options = {"post_transform": transform} | ({"base_values": base} if base else {})
    check("TreeEnsembleClassifier", X, outputs=2, **trees(), **classes, **options)


def test_missing_values_follow_their_track():
    gaps = np.where(X > 0, np.nan, X).astype(np.float32)
    targets = {f"target_{key}": value for key, value in LEAVES.items()}
    targets |= {"target_ids": [0] * 5, "target_weights": [1.0, 2.0, 3.0, 4.0, 5.0]}
    track = [1, 0, 0, 0, 0, 1, 0, 0]
    check("TreeEnsembleRegressor", gaps, n_targets=1, nodes_missing_value_tracks_true=track, **trees(), **targets)


# Maps.


def test_zip_map():
    check("ZipMap", X[:, :3], classlabels_strings=["a", "b", "c"], jit=False)
    check("ZipMap", X[:, :2], classlabels_int64s=[3, 4], jit=False)


def test_zip_map_with_types_as_scikit_learn_exports_them():
    """A batch of any size, and a declared list of maps, which onnx-ir does not read."""
    model = model_of("ZipMap", {"x0": X[:, :2]}, classlabels_int64s=[3, 4])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    score = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    rows = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, score))
    model.graph.output[0].type.CopyFrom(rows)
    wanted = [dict(zip((3, 4), row, strict=True)) for row in X[:, :2].tolist()]
    live = onnxeqx.load_model(model)
    assert live(X[:, :2]) == wanted
    assert eqx.filter_jit(live)(X[:3, :2]) == wanted[:3]


def test_maps_are_inputs():
    given = {"b": np.float32(2), "a": np.float32(1)}
    model = model_of("DictVectorizer", {"x0": X}, string_vocabulary=["a", "c", "b"])
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    model.graph.input[0].type.CopyFrom(helper.make_map_type_proto(TensorProto.STRING, number))
    assert onnxeqx.load_model(model)(given).tolist() == [[1, 0, 2]]
    with pytest.raises(onnxeqx.InputError, match="Input 'x0' must be a dictionary, not ndarray"):
        onnxeqx.load_model(model)(X)


def test_maps_as_vectors():
    from onnxeqx.plugins.feature_encoding import cast_map, dict_vectorizer

    assert dict_vectorizer({"b": 2.0, "a": 1.0}, string_vocabulary=("a", "c", "b")).tolist() == [[1.0, 0.0, 2.0]]
    assert cast_map({3: 1.5, 1: 2.5}).tolist() == [[2.5, 1.5]]
    assert cast_map({3: 1.5, 1: 2.5}, map_form="SPARSE", max_map=4).tolist() == [[0.0, 2.5, 0.0, 1.5]]
    assert cast_map({1: "7"}, cast_to="TO_INT64").tolist() == [[7]]
