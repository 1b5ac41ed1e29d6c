"""The training step: cross-entropy, L2-SP, and a latch that nothing passes after a bad step."""

import keras
import tensorflow as tf

from citynb.tasks.split import as_float


class Trainer(keras.Model):
    """A network with the training step of this book, for `compile` and `fit`.

    A step is bad when its loss or its gradient is not finite. The first bad step is latched: it
    and all steps after it change no weight, no statistic, no slot of the optimizer and no random
    state, until `fine_tune` looks at the latch and says what was wrong. `keras.Model.fit` alone
    would go on with weights that are not finite.

    Takes batches (pictures, labels, size) as `Split.batches` gives them; `size` is the number of
    examples over all replicas, so that unequal shares of a batch weigh what they should.

    Args:
        network: keras.Model from pictures (batch, height, width, c) in [0, 1], or from features
            (batch, d), to logits (batch, classes). Trained in place.
        augment: keras.Layer, or a function made of TensorFlow operations, or None.
        l2_sp: float, the pull back to the start (Li et al. 2018, arXiv 1802.01483).
        anchors: list of (variable, start), what is pulled and where to.
    """

    def __init__(self, network, augment=None, l2_sp=0.0, anchors=()):
        super().__init__(name="trainer")
        self.network, self.augment, self.l2_sp = network, augment, l2_sp
        # A function holds no variables to track, and a list of tuples would become a wrapper.
        self._anchors = lambda: anchors
        self.mean_loss = keras.metrics.Mean("loss")
        self.accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
        self.step = _counter(0)  # of this epoch
        self.bad_step = _counter(-1)  # the first one; -1 while there is none
        self.bad_loss = _counter(0.0)

    @property
    def metrics(self):
        return [self.mean_loss, self.accuracy]

    def _maybe_symbolic_build(self, *_, **__):
        """Skip Keras' look at a first batch: it fails where devices get unequal shares of it.

        Everything is built already: the network, and the optimizer by `fine_tune`.
        """

    def call(self, pictures, training=None):
        return self.network(as_float(pictures), training=training)

    def train_step(self, data):
        pictures, labels, size = data
        replica = tf.distribute.get_replica_context()
        # The forward pass already moves BatchNorm's statistics and the seeds of dropout.
        moving = [variable.value for variable in self.moving_variables()]
        before = [tf.identity(value) for value in moving]
        pictures = self.augmented(as_float(pictures))
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.network(pictures, training=True)
            loss = tf.reduce_sum(cross_entropy(labels, logits)) / tf.cast(size, tf.float32)
            extra = [tf.cast(term, tf.float32) for term in self.network.losses]
            extra += [self.l2_sp * tf.nn.l2_loss(v.value - start) for v, start in self._anchors()]
            if extra:
                loss += tf.add_n(extra) / replica.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        finite = tf.math.is_finite(loss)
        guarded = self.optimizer
        if isinstance(guarded, keras.optimizers.LossScaleOptimizer):
            # The outer one skips a step and lowers the scale. Below 1 no scale was the reason.
            finite &= guarded.dynamic_scale.value >= 1
            guarded = guarded.inner_optimizer
        else:
            finite &= tf.math.is_finite(tf.linalg.global_norm(gradients))
        loss, bad = replica.all_reduce("sum", [loss, tf.cast(~finite, tf.float32)])
        keep = (bad == 0) & (self.bad_step == -1)
        iterations = tf.identity(guarded.iterations.value)
        guarded.keep = keep
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        guarded.iterations.assign(tf.where(keep, guarded.iterations.value, iterations))
        for value, start in zip(moving, before, strict=True):
            value.assign(tf.where(keep, value, start))
        first = ~keep & (self.bad_step == -1)
        self.bad_loss.assign(tf.where(first, loss, self.bad_loss))
        self.bad_step.assign(tf.where(first, self.step, self.bad_step))
        self.step.assign_add(1)
        weight = tf.cast(keep, tf.float32)  # a loss that is not finite would spoil the mean
        self.mean_loss.update_state(tf.where(keep, loss, 0.0), sample_weight=weight)
        return {
            "loss": self.mean_loss.result(),
            "bad_step": tf.identity(self.bad_step),
            "bad_loss": tf.identity(self.bad_loss),
        }

    def test_step(self, data):
        pictures, labels, _ = data
        logits = self.network(as_float(pictures), training=False)
        self.mean_loss.update_state(cross_entropy(labels, logits))
        self.accuracy.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics}

    def moving_variables(self):
        """Return what a step moves beside the trained weights: statistics and random states."""
        states = list(self.network.non_trainable_variables)
        return states + list(getattr(self.augment, "variables", ()))

    def augmented(self, pictures):
        """Return the pictures as the network sees them in training, float32."""
        if self.augment is None:
            return pictures
        given = pictures.shape
        if isinstance(self.augment, keras.Layer):
            pictures = self.augment(pictures, training=True)
        else:
            pictures = self.augment(pictures)
        if not given.is_compatible_with(pictures.shape):
            raise ValueError(
                f"augment turns pictures {tuple(given)} into {tuple(pictures.shape)}; it must keep "
                "the shape. End it with keras.layers.Resizing or a crop of the size it was given."
            )
        return tf.cast(pictures, tf.float32)  # a layer in half precision gives half precision


def cross_entropy(labels, logits):
    """Return the cross-entropy of each example, float32 (batch,), from integer labels and logits."""
    logits = tf.cast(logits, tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def _counter(start):
    """Return a scalar variable that all replicas assign the same value."""
    return tf.Variable(
        tf.constant(start, tf.float32 if isinstance(start, float) else tf.int64),
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


class _Guard:
    """An optimizer that leaves weights and slots alone where `keep` is false.

    The condition stands around the update of each variable, since `tf.cond` around
    `apply_gradients` fails under a `tf.distribute` strategy. Weight decay is decoupled
    (Loshchilov and Hutter 2019, arXiv 1711.05101) and on kernels only: a kernel has two axes or
    more, biases and the scales of BatchNorm have one.
    """

    keep = True

    def __init__(self, learning_rate, decay, **options):
        super().__init__(learning_rate, **options)
        self.decay = decay

    def update_step(self, gradient, variable, learning_rate):
        def update():
            if self.decay and len(variable.shape) > 1:
                rate = tf.cast(learning_rate, variable.dtype)
                self.assign_sub(variable, variable * (rate * self.decay))
            super(_Guard, self).update_step(gradient, variable, learning_rate)
            return tf.constant(0)

        tf.cond(self.keep, update, lambda: tf.constant(0))


class GuardedSGD(_Guard, keras.optimizers.SGD):
    """SGD whose update waits for `keep`."""


class GuardedAdam(_Guard, keras.optimizers.Adam):
    """Adam whose update waits for `keep`; with decay it is AdamW."""
