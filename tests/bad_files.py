"""Files that bad command lines refer to."""

_LEVELS = zip("abcdefg", "bcdefgh", strict=True)
_ALIASES = "".join(f"{this}: &{this} [{', '.join(['*' + last] * 9)}]\n" for last, this in _LEVELS)

FILES: dict[str, str | bytes] = {
    "SIConvNet": "elr: 1.0\n",  # the class of this name comes first
    "anchor.yaml": "model: *nothing\n",
    "bad.yaml": "model: [1, 2\n  x: : :\n",
    "binary.yaml": bytes(range(256)),
    "bomb.yaml": "a: &a [x, x, x, x, x, x, x, x, x]\n" + _ALIASES,
    "callback_flat.yaml": "model: SIConvNet\ntrainer: {callbacks: [{class_path: RegimeMonitor, keep: 1}]}\n",
    "callback_number.yaml": "model: SIConvNet\ntrainer: {callbacks: [5]}\n",
    "ckpt5.yaml": "ckpt_weights: 5\n",
    "ckpt_missing.yaml": "ckpt_weights: nope.ckpt\n",
    "classes3.yaml": "model: {class_path: SIConvNet, init_args: {elr: 1.0, num_classes: 3}}\n",
    "deep.yaml": "model: " + "[" * 1000 + "]" * 1000 + "\n",
    "elr_text.yaml": "model: {class_path: SIConvNet, init_args: {elr: fast}}\n",
    "empty.ckpt": b"",
    "empty.yaml": "",
    "epochs.yaml": "model: SIConvNet\ntrainer: {max_epoch: 8}\n",
    "file": "",
    "folder/file": "",
    "init_list.yaml": "model: {class_path: SIConvNet, init_args: [1]}\n",
    "key.yaml": "modle:\n  class_path: SIConvNet\n",
    "keys.yaml": "model:\n  class_path: SIConvNet\n  init_args:\n    elr: 1.0\n    width: 8\n    elr: 2.0\n",
    "latin.yaml": b"run: \xe9\n",
    "list.yaml": "- 1\n- 2\n",
    "merge.yaml": "model: {<<: 5}\n",
    "model_number.yaml": "model: {class_path: 5}\n",
    "nan.yaml": "model: {class_path: SIConvNet, init_args: {elr: .nan}}\n",
    "nokey.yaml": "5: 6\n",
    "number.yaml": "5\n",
    "selfref.yaml": "model: &m\n  class_path: SIConvNet\n  init_args: *m\n",
    "tabs.yaml": "model:\n\tclass_path: SIConvNet\n",
    "tag.yaml": "model: !!python/object/apply:os.mkdir [executed]\n",
    "text.ckpt": "no checkpoint at all\n" * 20,
    "text.yaml": "elr\n",
    "trainer_null.yaml": "model: SIConvNet\ntrainer:\n",
    "twice.yaml": "model: SIConvNet\ntrainer: {max_epochs: 3}\ndata: {class_path: Digits}\ntrainer: {max_steps: 2}\n",
    "two.yaml": "model: SIConvNet\n---\nmodel: SIConvNet\n",
    "unclosed.yaml": "model: {class_path: SIConvNet\n",
    "weights_only.yaml": "model: {init_args: {elr: 1.0}}\n",
    "widht.yaml": "model: {class_path: SIConvNet, init_args: {widht: 8}}\n",
    "corrupt/cifar-10-batches-py/other": "",
    **{
        f"damaged/cifar-10-batches-py/{name}": b"damaged"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    },
}
"""Content by path; beside them there are ``loop``, a link to itself, ``list.ckpt``, and ``done``, a finished run."""
