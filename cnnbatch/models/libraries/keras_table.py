"""Keras Applications as a table, so that listing them need not import Keras, which takes seconds.

Accuracies are those of https://keras.io/api/applications, parameters are counted with the moving
statistics, as Keras counts them. The price: it has to follow Keras by hand; tests hold it against the
package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Colours = Literal["caffe", "tf", "torch", "raw"]
"""Keras' name of a preprocessing: BGR less the mean in 0..255; RGB in -1..1; ImageNet's; 0..255 as it is."""

_CLOUD = "https://storage.googleapis.com/tensorflow/keras-applications/"
_KERNELS = "_weights_tf_dim_ordering_tf_kernels.h5"


@dataclass(frozen=True, slots=True)
class KerasModel:
    """One model: ``side`` of its input in pixels, the ``least`` that it can be built for, its weights' file.

    ``top1`` and ``top5`` are in percent; ``digest`` is the file's MD5 or SHA-256, as Keras has it, if it
    has one.
    """

    name: str
    family: str
    colours: Colours
    least: int
    side: int
    parameters: int
    top1: float
    top5: float | None
    download_mb: float | None
    url: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class _Family:
    """Models of one module of Keras; ``file`` is the weights' address, ``{}`` the rest of a name."""

    name: str
    colours: Colours
    least: int
    file: str
    rows: tuple[tuple[str, int, int, float, float | None, float | None, str | None], ...]
    """Name, side, parameters, top-1, top-5, megabytes, MD5 or SHA-256."""


_FAMILIES = (
    _Family(
        "xception",
        "tf",
        71,
        f"{_CLOUD}xception/xception{_KERNELS}",
        (("Xception", 299, 22_910_480, 79.0, 94.5, 88, "0a58e3b7378bc2990ea3b43d5981f1f6"),),
    ),
    _Family(
        "vgg16",
        "caffe",
        32,
        f"{_CLOUD}vgg16/vgg16{_KERNELS}",
        (("VGG16", 224, 138_357_544, 71.3, 90.1, 528, "64373286793e3c8b2b4e3219cbf3544b"),),
    ),
    _Family(
        "vgg19",
        "caffe",
        32,
        f"{_CLOUD}vgg19/vgg19{_KERNELS}",
        (("VGG19", 224, 143_667_240, 71.3, 90.0, 549, "cbe5617147190e668d6c5d5026f83318"),),
    ),
    _Family(
        "resnet",
        "caffe",
        32,
        f"{_CLOUD}resnet/resnet{{}}{_KERNELS}",
        (
            ("ResNet50", 224, 25_636_712, 74.9, 92.1, 98, "2cb95161c43110f7111970584f804107"),
            ("ResNet101", 224, 44_707_176, 76.4, 92.8, 171, "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
            ("ResNet152", 224, 60_419_944, 76.6, 93.1, 232, "100835be76be38e30d865e96f2aaae62"),
        ),
    ),
    _Family(
        "resnet_v2",
        "tf",
        32,
        f"{_CLOUD}resnet/{{}}{_KERNELS}",
        (
            ("ResNet50V2", 224, 25_613_800, 76.0, 93.0, 98, "3ef43a0b657b3be2300d5770ece849e0"),
            ("ResNet101V2", 224, 44_675_560, 77.2, 93.8, 171, "6343647c601c52e1368623803854d971"),
            ("ResNet152V2", 224, 60_380_648, 78.0, 94.2, 232, "a49b44d1979771252814e80f8ec446f9"),
        ),
    ),
    _Family(
        "inception_v3",
        "tf",
        75,
        f"{_CLOUD}inception_v3/inception_v3{_KERNELS}",
        (("InceptionV3", 299, 23_851_784, 77.9, 93.7, 92, "9a0d58056eeedaa3f26cb7ebd46da564"),),
    ),
    _Family(
        "inception_resnet_v2",
        "tf",
        75,
        f"{_CLOUD}inception_resnet_v2/inception_resnet_v2{_KERNELS}",
        (("InceptionResNetV2", 299, 55_873_736, 80.3, 95.3, 215, "e693bd0210a403b3192acc6073ad2e96"),),
    ),
    _Family(
        "mobilenet",
        "tf",
        32,
        f"{_CLOUD}mobilenet/mobilenet_1_0_224_tf.h5",
        (("MobileNet", 224, 4_253_864, 70.4, 89.5, 16, None),),
    ),
    _Family(
        "mobilenet_v2",
        "tf",
        32,
        f"{_CLOUD}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
        (("MobileNetV2", 224, 3_538_984, 71.3, 90.1, 14, None),),
    ),
    _Family(
        "mobilenet_v3",
        "raw",
        32,
        f"{_CLOUD}mobilenet_v3/weights_mobilenet_v3_{{}}_224_1.0_float.h5",
        (
            ("MobileNetV3Small", 224, 2_554_968, 68.1, None, None, "8768d4c2e7dee89b9d02b2d03d65d862"),
            ("MobileNetV3Large", 224, 5_507_432, 75.6, None, None, "59e551e166be033d707958cf9e29a6a7"),
        ),
    ),
    _Family(
        "densenet",
        "torch",
        32,
        f"{_CLOUD}densenet/densenet{{}}{_KERNELS}",
        (
            ("DenseNet121", 224, 8_062_504, 75.0, 92.3, 33, "9d60b8095a5708f2dcce2bca79d332c7"),
            ("DenseNet169", 224, 14_307_880, 76.2, 93.2, 57, "d699b8f76981ab1b30698df4c175e90b"),
            ("DenseNet201", 224, 20_242_984, 77.3, 93.6, 80, "1ceb130c1ea1b78c3bf6114dbdfd8807"),
        ),
    ),
    _Family(
        "nasnet",
        "tf",
        32,
        f"{_CLOUD}nasnet/NASNet-{{}}.h5",
        (("NASNetLarge", 331, 88_949_818, 82.5, 96.0, 343, "11577c9a518f0070763c2b964a382f17"),),
    ),
    _Family(
        "efficientnet",
        "raw",
        32,
        "https://storage.googleapis.com/keras-applications/efficientnet{}.h5",
        (
            ("EfficientNetB0", 224, 5_330_571, 77.1, 93.3, 29, "902e53a9f72be733fc0bcb005b3ebbac"),
            ("EfficientNetB1", 240, 7_856_239, 79.1, 94.4, 31, "1d254153d4ab51201f1646940f018540"),
            ("EfficientNetB2", 260, 9_177_569, 80.1, 94.9, 36, "b15cce36ff4dcbd00b6dd88e7857a6ad"),
            ("EfficientNetB3", 300, 12_320_535, 81.6, 95.7, 48, "ffd1fdc53d0ce67064dc6a9c7960ede0"),
            ("EfficientNetB4", 380, 19_466_823, 82.9, 96.4, 75, "18c95ad55216b8f92d7e70b3a046e2fc"),
            ("EfficientNetB5", 456, 30_562_527, 83.6, 96.7, 118, "ace28f2a6363774853a83a0b21b9421a"),
            ("EfficientNetB6", 528, 43_265_143, 84.0, 96.8, 166, "165f6e37dce68623721b423839de8be5"),
            ("EfficientNetB7", 600, 66_658_687, 84.3, 97.0, 256, "8c03f828fec3ef71311cd463b6759d99"),
        ),
    ),
    _Family(
        "efficientnet_v2",
        "raw",
        32,
        f"{_CLOUD}efficientnet_v2/efficientnetv2-{{}}.h5",
        (
            ("EfficientNetV2B0", 224, 7_200_312, 78.7, 94.3, 29, "21ecbf6da12460d5c40bb2f29ceb2188"),
            ("EfficientNetV2B1", 240, 8_212_124, 79.8, 95.0, 34, "069f0534ff22adf035c89e2d9547a9dc"),
            ("EfficientNetV2B2", 260, 10_178_374, 80.5, 95.1, 42, "424e49f28180edbde1e94797771950a7"),
            ("EfficientNetV2B3", 300, 14_467_622, 82.0, 95.8, 59, "1f1fc43bd98a6e4fd8fdfd551e02c7a0"),
            ("EfficientNetV2S", 384, 21_612_360, 83.9, 96.7, 88, "e1d88a8495beba45748fedd0cecbe016"),
            ("EfficientNetV2M", 480, 54_431_388, 85.3, 97.4, 220, "a3bf6aa3276309f4fc6a34aa114c95cd"),
            ("EfficientNetV2L", 480, 119_027_848, 85.7, 97.5, 479, "27e6d408b53c7ebc868fefa357689935"),
        ),
    ),
    _Family(
        "convnext",
        "raw",
        32,
        f"{_CLOUD}convnext/convnext_{{}}.h5",
        (
            (
                "ConvNeXtTiny",
                224,
                28_589_128,
                81.3,
                None,
                109.42,
                "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
            ),
            (
                "ConvNeXtSmall",
                224,
                50_223_688,
                82.3,
                None,
                192.29,
                "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
            ),
            (
                "ConvNeXtBase",
                224,
                88_591_464,
                85.3,
                None,
                338.58,
                "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
            ),
            (
                "ConvNeXtLarge",
                224,
                197_767_336,
                86.3,
                None,
                755.07,
                "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
            ),
            (
                "ConvNeXtXLarge",
                224,
                350_196_968,
                86.7,
                None,
                1310,
                "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
            ),
        ),
    ),
)


def _models() -> Iterator[KerasModel]:
    for family in _FAMILIES:
        prefix = family.name.replace("_", "")
        for name, side, parameters, top1, top5, megabytes, digest in family.rows:
            yield KerasModel(
                name=name,
                family=family.name,
                colours=family.colours,
                least=family.least,
                side=side,
                parameters=parameters,
                top1=top1,
                top5=top5,
                download_mb=megabytes,
                url=family.file.format(name.lower().removeprefix(prefix)),
                digest=digest,
            )


MODELS = {model.name: model for model in _models()}
"""Keras' name -> the model; every one that Keras' torch backend runs."""
