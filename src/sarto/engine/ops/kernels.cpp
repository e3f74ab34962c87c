// The element-wise pieces between matrix products, bfloat16 or float32 storage and float32 arithmetic; the twin of eager_kernels.py.
//
// A plain C interface on raw pointers: no torch headers, so that building the package needs only a compiler. It is
// compiled with OpenMP but linked to no OpenMP library: the symbols are found in the one that torch has loaded, so there
// is one thread pool in the process. Strides are in elements; the last dimension is always contiguous.
#include "numbers.h"

namespace {

// Sum of the terms from `from` to `to`. A large float loses the digits of small terms, so a float sums a block, and a
// double sums the blocks.
template <class Term>
inline float sum_of(index_t from, index_t to, Term term) {
    const index_t stretch = 512;
    double total = 0.;
    for (index_t start = from; start < to; start += stretch) {
        index_t end = start + stretch < to ? start + stretch : to;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        for (index_t j = start; j < end; j++) sum += term(j);
        total += sum;
    }
    return float(total);
}

inline float sigmoid(float x) { return 1.f / (1.f + exponential(-x)); }

// Gate activations with value and derivative: 0 is x * sigmoid(x), 1 is the tanh form of GELU.
inline void activate(int kind, float x, float& value, float& slope) {
    if (kind == 0) {
        float s = sigmoid(x);
        value = x * s;
        slope = s * (1.f + x * (1.f - s));
    } else {
        const float a = 0.7978845608f, b = 0.044715f;
        float t = 2.f * sigmoid(2.f * a * (x + b * x * x * x)) - 1.f;
        value = 0.5f * x * (1.f + t);
        slope = 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * a * (1.f + 3.f * b * x * x);
    }
}

template <class T>
void norm_forward(index_t rows, index_t width, const float* stream, const T* delta, index_t delta_stride,
                  const float* weight, float eps, float* sum, T* kept, float* scale, T* out, index_t out_stride) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const T* d = delta + i * delta_stride;
        float* x = sum + i * width;
        T* k = kept + i * width;
        T* o = out + i * out_stride;
        float squares = 0.f;
        if (stream) {
            const float* s = stream + i * width;
#pragma omp simd reduction(+ : squares)
            for (index_t j = 0; j < width; j++) { x[j] = s[j] + load(d + j); squares += x[j] * x[j]; }
        } else {
#pragma omp simd reduction(+ : squares)
            for (index_t j = 0; j < width; j++) { x[j] = load(d + j); squares += x[j] * x[j]; }
        }
        float r = 1.f / std::sqrt(squares / float(width) + eps);
        scale[i] = r;
#pragma omp simd
        for (index_t j = 0; j < width; j++) { store(k + j, x[j]); store(o + j, x[j] * r * weight[j]); }
    }
}

template <class T>
void norm_backward(index_t rows, index_t width, const T* grad, index_t grad_stride, const float* stream_grad,
                   const T* kept, const float* scale, const float* weight, float* total, T* out, index_t out_stride) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const T* g = grad + i * grad_stride;
        const T* k = kept + i * width;
        float* t = total + i * width;
        T* o = out + i * out_stride;
        float r = scale[i];
        float along = sum_of(0, width, [=](index_t j) { return load(g + j) * weight[j] * load(k + j); });
        float c = along * r * r * r / float(width);
        const float* s = stream_grad ? stream_grad + i * width : nullptr;
        if (s) {
#pragma omp simd
            for (index_t j = 0; j < width; j++) t[j] = s[j] + load(g + j) * weight[j] * r - load(k + j) * c;
        } else {
#pragma omp simd
            for (index_t j = 0; j < width; j++) t[j] = load(g + j) * weight[j] * r - load(k + j) * c;
        }
#pragma omp simd
        for (index_t j = 0; j < width; j++) store(o + j, t[j]);
    }
}

template <class T, int KIND>
void gated_forward(index_t rows, index_t width, const T* gate_up, index_t in_stride, T* out, index_t out_stride) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const T* g = gate_up + i * in_stride;
        const T* u = g + width;
        T* o = out + i * out_stride;
#pragma omp simd
        for (index_t j = 0; j < width; j++) {
            float value, slope;
            activate(KIND, load(g + j), value, slope);
            store(o + j, value * load(u + j));
        }
    }
}

template <class T, int KIND>
void gated_backward(index_t rows, index_t width, const T* grad, index_t grad_stride, const T* gate_up,
                    index_t in_stride, T* out, index_t out_stride) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const T* e = grad + i * grad_stride;
        const T* g = gate_up + i * in_stride;
        const T* u = g + width;
        T* o = out + i * out_stride;
#pragma omp simd
        for (index_t j = 0; j < width; j++) {
            float value, slope, d = load(e + j);
            activate(KIND, load(g + j), value, slope);
            store(o + j, d * load(u + j) * slope);
            store(o + width + j, d * value);
        }
    }
}

// q and k rotated by their positions, q scaled too, v copied; heads of `width` side by side in a row.
template <class T>
void rotate(index_t rows, index_t heads, index_t kv_heads, index_t width, const T* in, index_t in_stride,
            const float* cosine, const float* sine, float query_scale, float sign, T* out, index_t out_stride) {
    index_t half = width / 2, turning = heads + kv_heads;
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const float* c = cosine + i * half;
        const float* s = sine + i * half;
        for (index_t h = 0; h < turning; h++) {
            const T* x = in + i * in_stride + h * width;
            T* y = out + i * out_stride + h * width;
            float scale = h < heads ? query_scale : 1.f, turn = scale * sign;
#pragma omp simd
            for (index_t j = 0; j < half; j++) {
                float a = load(x + j), b = load(x + j + half);
                store(y + j, a * c[j] * scale - b * s[j] * turn);
                store(y + j + half, b * c[j] * scale + a * s[j] * turn);
            }
        }
        std::memcpy(out + i * out_stride + turning * width, in + i * in_stride + turning * width,
                    kv_heads * width * sizeof(T));
    }
}

// Rows are (matrix, head, query); query i of a block is at position first + i and sees keys
// (position - window, position], of which the first in the row is `low`. window 0 means all.
struct Span {
    index_t from, to;
};

inline Span seen(index_t query, index_t first, index_t low, index_t window) {
    index_t position = first + query;
    index_t from = window > 0 && position - window + 1 > low ? position - window + 1 - low : 0;
    return {from, position - low + 1};
}

template <class T>
void softmax_forward(index_t rows, index_t queries, index_t keys, index_t first, index_t low, index_t window,
                     T* scores) {
#pragma omp parallel
    {
        std::vector<float> row(keys);
        float* e = row.data();
#pragma omp for schedule(static)
        for (index_t i = 0; i < rows; i++) {
            T* p = scores + i * keys;
            Span span = seen(i % queries, first, low, window);
            float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
            for (index_t j = span.from; j < span.to; j++) { e[j] = load(p + j); most = e[j] > most ? e[j] : most; }
            float sum = sum_of(span.from, span.to, [=](index_t j) { return e[j] = exponential(e[j] - most); });
            float scale = 1.f / sum;
            std::memset(p, 0, span.from * sizeof(T));
#pragma omp simd
            for (index_t j = span.from; j < span.to; j++) store(p + j, e[j] * scale);
            std::memset(p + span.to, 0, (keys - span.to) * sizeof(T));
        }
    }
}

template <class T>
void softmax_backward(index_t rows, index_t queries, index_t keys, index_t first, index_t low, index_t window,
                      const T* weights, T* grad) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        const T* p = weights + i * keys;
        T* d = grad + i * keys;
        Span span = seen(i % queries, first, low, window);
        float sum = sum_of(span.from, span.to, [=](index_t j) { return load(p + j) * load(d + j); });
        std::memset(d, 0, span.from * sizeof(T));
#pragma omp simd
        for (index_t j = span.from; j < span.to; j++) store(d + j, load(p + j) * (load(d + j) - sum));
        std::memset(d + span.to, 0, (keys - span.to) * sizeof(T));
    }
}

// out[row] = sum of cells[uses[starts[row] .. starts[row + 1])]
template <class T>
void sum_uses(index_t rows, index_t width, const T* cells, const index_t* starts, const index_t* uses, T* out,
              index_t out_stride) {
#pragma omp parallel
    {
        std::vector<float> sum(width);
        float* t = sum.data();
#pragma omp for schedule(static)
        for (index_t i = 0; i < rows; i++) {
            T* o = out + i * out_stride;
            index_t from = starts[i], to = starts[i + 1];
            if (to - from == 1) {
                std::memcpy(o, cells + uses[from] * width, width * sizeof(T));
                continue;
            }
            std::memset(t, 0, width * sizeof(float));
            for (index_t u = from; u < to; u++) {
                const T* c = cells + uses[u] * width;
#pragma omp simd
                for (index_t j = 0; j < width; j++) t[j] += load(c + j);
            }
#pragma omp simd
            for (index_t j = 0; j < width; j++) store(o + j, t[j]);
        }
    }
}

// Cross-entropy of each row and whether its target ranks first; with `gradient`, logits become softmax - onehot.
template <class T>
void loss(index_t rows, index_t width, T* logits, const index_t* targets, float* losses, uint8_t* right,
          int gradient) {
#pragma omp parallel for schedule(static)
    for (index_t i = 0; i < rows; i++) {
        T* x = logits + i * width;
        float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
        for (index_t j = 0; j < width; j++) { float v = load(x + j); most = v > most ? v : most; }
        float sum = sum_of(0, width, [=](index_t j) { return exponential(load(x + j) - most); });
        float wanted = load(x + targets[i]);
        losses[i] = std::log(sum) + most - wanted;
        index_t best = 0;
        while (best < width && load(x + best) != most) best++;
        right[i] = best == targets[i];
        if (!gradient) continue;
        float scale = 1.f / sum;
#pragma omp simd
        for (index_t j = 0; j < width; j++) store(x + j, exponential(load(x + j) - most) * scale);
        store(x + targets[i], exponential(wanted - most) * scale - 1.f);
    }
}

}  // namespace

EXPORT void sarto_norm_forward(int half, index_t rows, index_t width, const float* stream, const void* delta,
                               index_t delta_stride, const float* weight, float eps, float* sum, void* kept,
                               float* scale, void* out, index_t out_stride) {
    BOTH(half,
         norm_forward(rows, width, stream, (const bf16*)delta, delta_stride, weight, eps, sum, (bf16*)kept, scale,
                      (bf16*)out, out_stride),
         norm_forward(rows, width, stream, (const float*)delta, delta_stride, weight, eps, sum, (float*)kept, scale,
                      (float*)out, out_stride));
}

EXPORT void sarto_norm_backward(int half, index_t rows, index_t width, const void* grad, index_t grad_stride,
                                const float* stream_grad, const void* kept, const float* scale, const float* weight,
                                float* total, void* out, index_t out_stride) {
    BOTH(half,
         norm_backward(rows, width, (const bf16*)grad, grad_stride, stream_grad, (const bf16*)kept, scale, weight,
                       total, (bf16*)out, out_stride),
         norm_backward(rows, width, (const float*)grad, grad_stride, stream_grad, (const float*)kept, scale, weight,
                       total, (float*)out, out_stride));
}

template <class T>
static void gated_forward_of(int kind, index_t rows, index_t width, const T* in, index_t in_stride, T* out,
                             index_t out_stride) {
    if (kind == 0) gated_forward<T, 0>(rows, width, in, in_stride, out, out_stride);
    else gated_forward<T, 1>(rows, width, in, in_stride, out, out_stride);
}

EXPORT void sarto_gated_forward(int half, int kind, index_t rows, index_t width, const void* in, index_t in_stride,
                                void* out, index_t out_stride) {
    BOTH(half, gated_forward_of(kind, rows, width, (const bf16*)in, in_stride, (bf16*)out, out_stride),
         gated_forward_of(kind, rows, width, (const float*)in, in_stride, (float*)out, out_stride));
}

template <class T>
static void gated_backward_of(int kind, index_t rows, index_t width, const T* grad, index_t grad_stride, const T* in,
                              index_t in_stride, T* out, index_t out_stride) {
    if (kind == 0) gated_backward<T, 0>(rows, width, grad, grad_stride, in, in_stride, out, out_stride);
    else gated_backward<T, 1>(rows, width, grad, grad_stride, in, in_stride, out, out_stride);
}

EXPORT void sarto_gated_backward(int half, int kind, index_t rows, index_t width, const void* grad,
                                 index_t grad_stride, const void* in, index_t in_stride, void* out,
                                 index_t out_stride) {
    BOTH(half,
         gated_backward_of(kind, rows, width, (const bf16*)grad, grad_stride, (const bf16*)in, in_stride, (bf16*)out,
                           out_stride),
         gated_backward_of(kind, rows, width, (const float*)grad, grad_stride, (const float*)in, in_stride,
                           (float*)out, out_stride));
}

EXPORT void sarto_rotate(int half, index_t rows, index_t heads, index_t kv_heads, index_t width, const void* in,
                         index_t in_stride, const float* cosine, const float* sine, float query_scale, float sign,
                         void* out, index_t out_stride) {
    BOTH(half,
         rotate(rows, heads, kv_heads, width, (const bf16*)in, in_stride, cosine, sine, query_scale, sign, (bf16*)out,
                out_stride),
         rotate(rows, heads, kv_heads, width, (const float*)in, in_stride, cosine, sine, query_scale, sign,
                (float*)out, out_stride));
}

EXPORT void sarto_softmax_forward(int half, index_t rows, index_t queries, index_t keys, index_t first, index_t low,
                                  index_t window, void* scores) {
    BOTH(half, softmax_forward(rows, queries, keys, first, low, window, (bf16*)scores),
         softmax_forward(rows, queries, keys, first, low, window, (float*)scores));
}

EXPORT void sarto_softmax_backward(int half, index_t rows, index_t queries, index_t keys, index_t first, index_t low,
                                   index_t window, const void* weights, void* grad) {
    BOTH(half, softmax_backward(rows, queries, keys, first, low, window, (const bf16*)weights, (bf16*)grad),
         softmax_backward(rows, queries, keys, first, low, window, (const float*)weights, (float*)grad));
}

EXPORT void sarto_sum_uses(int half, index_t rows, index_t width, const void* cells, const index_t* starts,
                           const index_t* uses, void* out, index_t out_stride) {
    BOTH(half, sum_uses(rows, width, (const bf16*)cells, starts, uses, (bf16*)out, out_stride),
         sum_uses(rows, width, (const float*)cells, starts, uses, (float*)out, out_stride));
}

EXPORT void sarto_loss(int half, index_t rows, index_t width, void* logits, const index_t* targets, float* losses,
                       uint8_t* right, int gradient) {
    BOTH(half, loss(rows, width, (bf16*)logits, targets, losses, right, gradient),
         loss(rows, width, (float*)logits, targets, losses, right, gradient));
}
