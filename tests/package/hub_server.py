"""A TF Hub of our own on the loopback, and small SavedModels in the form that TF Hub serves."""

import contextlib
import http.server
import io
import pathlib
import tarfile
import threading

import keras
import tensorflow as tf

HANDLE = "/city/resnet_tiny/feature_vector/1"


def tiny_resnet(width=8):
    """A ResNet v2 in miniature: one pre-activated residual block, features (batch, 2 * width)."""
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(width, 3, strides=2, padding="same", name="stem")(images)
    x = keras.layers.BatchNormalization(name="preact_bn")(x)
    x = keras.layers.ReLU()(x)
    y = keras.layers.Conv2D(2 * width, 3, padding="same", use_bias=False, name="block")(x)
    y = keras.layers.BatchNormalization(name="post_bn")(y)
    x = keras.layers.Add()([keras.layers.Conv2D(2 * width, 1, name="shortcut")(x), y])
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(images, features)


def save_reusable(model, folder, l2=1e-3):
    """Write a Keras model of image features as a TF2 reusable SavedModel, as TF Hub wants it."""

    @tf.function
    def call(inputs, training=False):
        return model(inputs, training=training)

    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    for training in (True, False):
        call.get_concrete_function(images, training=training)

    def decay(kernel):
        return tf.function(lambda: l2 * tf.nn.l2_loss(kernel.value), input_signature=[])

    reusable = tf.train.Checkpoint()
    reusable.__call__ = call
    reusable.variables = [variable.value for variable in model.variables]
    reusable.trainable_variables = [variable.value for variable in model.trainable_variables]
    kernels = [variable for variable in model.trainable_variables if len(variable.shape) == 4]
    reusable.regularization_losses = [decay(kernel) for kernel in kernels]
    tf.saved_model.save(reusable, str(folder))
    return pathlib.Path(folder)


def pack(folder, below="", skip=()):
    """Return a folder as the bytes of a .tar.gz, `below` a prefix, without the names in `skip`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.name not in skip:
                name = f"{below}{path.relative_to(folder).as_posix()}"
                archive.add(path, name, recursive=False)
    return buffer.getvalue()


class HubServer:
    """What TF Hub does: the handle redirects to a storage address that delivers the archive.

    Attributes set by a test:
        content: the bytes of the archive.
        answers: HTTP statuses to give before the archive, e.g. [503, 503]; the last one stays
            when `forever` is True.
        cut: deliver only this many bytes, then close. stall: deliver nothing and wait.
        requests: the paths asked for so far.
    """

    def __init__(self, content):
        self.content, self.answers, self.forever = content, [], False
        self.cut, self.stall, self.requests = None, False, []
        self.over = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.requests.append(self.path)
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.handle = f"http://127.0.0.1:{self.server.server_port}{HANDLE}"

    def answer(self, request):
        if self.answers:
            status = self.answers[0] if self.forever else self.answers.pop(0)
            request.send_error(status)
        elif request.path == f"{HANDLE}?tf-hub-format=compressed":
            request.send_response(302)
            request.send_header("Location", "/storage/model.tar.gz")
            request.end_headers()
        elif request.path == "/storage/model.tar.gz":
            request.send_response(200)
            request.send_header("Content-Type", "application/gzip")
            request.send_header("Content-Length", str(len(self.content)))
            request.end_headers()
            if self.stall:
                self.over.wait(30)
            with contextlib.suppress(ConnectionError):
                request.wfile.write(self.content[: self.cut])
        else:  # TF Hub shows a page for people when the query is missing
            request.send_error(404)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
