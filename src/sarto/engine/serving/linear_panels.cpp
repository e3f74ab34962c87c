// Serving on processors that multiply bfloat16: products of few or many rows with weights laid out in panels, bfloat16 or
// int8, each row with an adapter of its own; and attention of rows that decode. Its twins in torch are linear.py
// and attention.py.
//
// A panel holds 16 or 32 outputs: for each pair of inputs the pair's weights of one output after the other, so one
// instruction multiplies a pair of x by 16 outputs. Every sum is taken in the order of its inputs, for any number of
// rows: a row's bits never depend on other rows. Compiled into the same library as engine/ops/kernels.cpp, for its
// instructions alone; `sarto_panels_work` returns whether this processor has them.
#include "../ops/numbers.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the header of intrinsics itself
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

namespace {

constexpr int TILE = 12;          // rows whose sums fit into registers beside two vectors of weights
constexpr int PANEL = 32;         // outputs of a panel of weights
constexpr index_t GROUP = 32;     // inputs that share a scale in int8
constexpr index_t AHEAD = 4096;   // bytes to prefetch

struct Rows {
    const bf16* x;
    index_t stride;
};

inline __m512bh pairs_at(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh pair_of(const bf16* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}
inline __m512 wide(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

// Weights as they are multiplied: 16 * V outputs times a pair of inputs. `Scales` is what pairs of a group share.
template <int V>
struct Plain {
    const bf16* w;
    struct Scales {};
    inline Scales scales(index_t) const { return {}; }
    inline void load(index_t pair, const Scales&, __m512bh* out) const {
        const bf16* p = w + pair * 32 * V;
        _mm_prefetch((const char*)p + AHEAD, _MM_HINT_T0);
        if (V > 1) _mm_prefetch((const char*)p + AHEAD + 64, _MM_HINT_T0);
        for (int v = 0; v < V; v++) out[v] = pairs_at(p + 32 * v);
    }
};

// int8 with a bfloat16 scale for each output and GROUP inputs; what is multiplied is their product, in bfloat16.
template <int V>
struct Quarter {
    const int8_t* w;
    const bf16* s;
    struct Scales {
        __m512 low[V], high[V];
    };
    inline Scales scales(index_t pair) const {
        const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        Scales found;
        for (int v = 0; v < V; v++) {
            __m512 scale = wide(s + (2 * pair / GROUP * V + v) * 16);
            found.low[v] = _mm512_permutexvar_ps(low, scale);
            found.high[v] = _mm512_permutexvar_ps(high, scale);
        }
        return found;
    }
    inline void load(index_t pair, const Scales& scales, __m512bh* out) const {
        const int8_t* p = w + pair * 32 * V;
        _mm_prefetch((const char*)p + AHEAD, _MM_HINT_T0);
        for (int v = 0; v < V; v++) {
            __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 32 * v))));
            __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 32 * v + 16))));
            out[v] = _mm512_cvtne2ps_pbh(_mm512_mul_ps(b, scales.high[v]), _mm512_mul_ps(a, scales.low[v]));
        }
    }
};

// sums (M, 16 V) += x (M, 2 pairs) times weights
template <int M, int V, class W>
void add_tile(Rows x, W weights, index_t pairs, float* sums) {
    __m512 s[M][V];
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) s[m][v] = _mm512_loadu_ps(sums + (m * V + v) * 16);
    for (index_t from = 0; from < pairs; from += GROUP / 2) {
        index_t to = from + GROUP / 2 < pairs ? from + GROUP / 2 : pairs;
        auto scales = weights.scales(from);
        for (index_t k = from; k < to; k++) {
            __m512bh w[V];
            weights.load(k, scales, w);
#pragma GCC unroll 12
            for (int m = 0; m < M; m++) {
                __m512bh in = pair_of(x.x + m * x.stride + 2 * k);
                for (int v = 0; v < V; v++) s[m][v] = _mm512_dpbf16_ps(s[m][v], in, w[v]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + (m * V + v) * 16, s[m][v]);
}

template <int V, class W>
void add(int rows, Rows x, W weights, index_t pairs, float* sums) {
    switch (rows) {
#define CASE(M) case M: add_tile<M, V, W>(x, weights, pairs, sums); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

inline int run_of(const int32_t* slots, index_t from, index_t to) {  // rows from `from` on with the same adapter
    index_t at = from + 1;
    while (at < to && at - from < TILE && slots[at] == slots[from]) at++;
    return int(at - from);
}

}  // namespace

extern "C" {
// Adapters of one rank class; `slots` (rows) has the adapter of each row, -1 for none. A (slots, columns / 16, inputs /
// 2, 16, 2), B (slots, panels, depth / 2, 32, 2); panel p takes `depth` of a row's factors from `starts[p]` on.
struct SartoAdapters {
    index_t columns, depth;
    const int32_t* slots;
    const bf16 *a, *b;
    const index_t* starts;
};
}

namespace {

// factors (rows, columns) bfloat16 = A x
void factors_of(const SartoAdapters& adapters, index_t rows, index_t inputs, Rows x, bf16* factors) {
    index_t columns = adapters.columns, blocks = columns / 16;
#pragma omp for schedule(static) collapse(2)
    for (index_t tile = 0; tile < (rows + TILE - 1) / TILE; tile++)
        for (index_t block = 0; block < blocks; block++) {
            index_t last = (tile + 1) * TILE < rows ? (tile + 1) * TILE : rows;
            for (index_t i = tile * TILE; i < last;) {
                int count = run_of(adapters.slots, i, last);
                if (adapters.slots[i] >= 0) {
                    float sums[TILE * 16] = {};
                    const bf16* a = adapters.a + (adapters.slots[i] * blocks + block) * inputs * 16;
                    add<1>(count, {x.x + i * x.stride, x.stride}, Plain<1>{a}, inputs / 2, sums);
                    for (int m = 0; m < count; m++)
                        for (int j = 0; j < 16; j++) store(factors + (i + m) * columns + block * 16 + j, sums[m * 16 + j]);
                }
                i += count;
            }
        }
}

void add_terms(const SartoAdapters& adapters, index_t panels, index_t panel, index_t first, index_t last,
               const bf16* factors, float* sums) {
    for (index_t i = first; i < last;) {
        int count = run_of(adapters.slots, i, last);
        if (adapters.slots[i] >= 0) {
            const bf16* b = adapters.b + (adapters.slots[i] * panels + panel) * adapters.depth * PANEL;
            Rows h = {factors + i * adapters.columns + adapters.starts[panel], adapters.columns};
            add<2>(count, h, Plain<2>{b}, adapters.depth / 2, sums + (i - first) * PANEL);
        }
        i += count;
    }
}

template <class T>
void finish(int rows, index_t outputs, const float* sums, T* y, index_t stride) {
    for (int m = 0; m < rows; m++)
#pragma omp simd
        for (index_t j = 0; j < outputs; j++) store(y + m * stride + j, sums[m * PANEL + j]);
}

// y (rows, outputs) = x W^T + bias + terms of adapters, rounded once
template <class T>
void product(index_t rows, index_t inputs, index_t outputs, Rows x, const void* weights, const bf16* scales,
             const float* bias, index_t kinds, const SartoAdapters* adapters, T* y, index_t y_stride) {
    index_t panels = (outputs + PANEL - 1) / PANEL, pairs = inputs / 2;
    std::vector<std::vector<bf16>> factors(kinds);
    for (index_t kind = 0; kind < kinds; kind++) factors[kind].resize(rows * adapters[kind].columns);
#pragma omp parallel
    {
        for (index_t kind = 0; kind < kinds; kind++)
            factors_of(adapters[kind], rows, inputs, x, factors[kind].data());
        std::vector<bf16> opened(scales && rows > TILE ? inputs * PANEL : 0);
#pragma omp for schedule(static)
        for (index_t panel = 0; panel < panels; panel++) {
            const bf16* plain = (const bf16*)weights + panel * inputs * PANEL;
            Quarter<2> quarter = {(const int8_t*)weights + panel * inputs * PANEL,
                               scales + panel * inputs / GROUP * PANEL};
            if (!opened.empty()) {
                for (index_t k = 0; k < pairs; k++) {
                    __m512bh w[2];
                    quarter.load(k, quarter.scales(k), w);
                    for (int v = 0; v < 2; v++) _mm512_storeu_si512(&opened[k * 64 + 32 * v], (__m512i)w[v]);
                }
                plain = opened.data();
            }
            index_t from = panel * PANEL, width = outputs - from < PANEL ? outputs - from : PANEL;
            for (index_t first = 0; first < rows; first += TILE) {
                index_t last = first + TILE < rows ? first + TILE : rows;
                int count = int(last - first);
                float sums[TILE * PANEL] = {};
                if (bias)
                    for (int m = 0; m < count; m++) std::memcpy(sums + m * PANEL, bias + from, width * sizeof(float));
                Rows tile = {x.x + first * x.stride, x.stride};
                if (scales && opened.empty()) add<2>(count, tile, quarter, pairs, sums);
                else add<2>(count, tile, Plain<2>{plain}, pairs, sums);
                for (index_t kind = 0; kind < kinds; kind++)
                    add_terms(adapters[kind], panels, panel, first, last, factors[kind].data(), sums);
                finish(count, width, sums, y + first * y_stride + from, y_stride);
            }
        }
    }
}

inline __m512 sums_of(const __m512* a) {  // sums of 16 vectors, in their order
    __m512 u[4];
    for (int i = 0; i < 4; i++) {
        const __m512* b = a + 4 * i;
        __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]));
        __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(b[2], b[3]), _mm512_unpackhi_ps(b[2], b[3]));
        __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
        u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    }
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
    __m512 w = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd));
}

// scores (keys from `from`, a multiple of 16) of one query; keys lie `size` apart and there are multiples of 16 of them
inline void scores_of(const bf16* q, const bf16* keys, index_t size, index_t from, index_t to, float* scores) {
    for (index_t at = from; at < to; at += 16) {
        __m512 sums[16];
        for (int i = 0; i < 16; i++) {
            sums[i] = _mm512_setzero_ps();
            for (index_t j = 0; j < size; j += 32)
                sums[i] = _mm512_dpbf16_ps(sums[i], pairs_at(q + j), pairs_at(keys + (at + i) * size + j));
        }
        _mm512_storeu_ps(scores + at, sums_of(sums));
    }
}

inline void softmax(float* scores, index_t from, index_t to) {
    float most = -std::numeric_limits<float>::infinity(), sum = 0.f;
#pragma omp simd reduction(max : most)
    for (index_t j = from; j < to; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
    for (index_t j = from; j < to; j++) { scores[j] = exponential(scores[j] - most); sum += scores[j]; }
    float scale = 1.f / sum;
#pragma omp simd
    for (index_t j = from; j < to; j++) scores[j] *= scale;
}

inline void weigh(const float* weights, const bf16* values, index_t size, index_t from, index_t to, bf16* out) {
    for (index_t j = 0; j < size; j += 32) {
        __m512 a = _mm512_setzero_ps(), b = a;
        for (index_t at = from; at < to; at++) {
            __m512 weight = _mm512_set1_ps(weights[at]);
            a = _mm512_fmadd_ps(weight, wide(values + at * size + j), a);
            b = _mm512_fmadd_ps(weight, wide(values + at * size + j + 16), b);
        }
        _mm512_storeu_si512(out + j, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}

}  // namespace

EXPORT int sarto_panels_work() { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq"); }

EXPORT void sarto_panel_product(index_t rows, index_t inputs, index_t outputs, const void* x, index_t x_stride,
                                const void* weights, const void* scales, const float* bias, index_t kinds,
                                const SartoAdapters* adapters, int is_float, void* y, index_t y_stride) {
    Rows in = {(const bf16*)x, x_stride};
    if (is_float)
        product(rows, inputs, outputs, in, weights, (const bf16*)scales, bias, kinds, adapters, (float*)y, y_stride);
    else
        product(rows, inputs, outputs, in, weights, (const bf16*)scales, bias, kinds, adapters, (bf16*)y, y_stride);
}

// One new token of each row: its key and value go to `positions` of its slot, then it sees the `window` (0: all) before it.
// qkv (rows, (H + 2 HK) size), keys and values (slots, HK, width, size); row i owns slot i; width in multiples of 16.
EXPORT void sarto_attend_rows(index_t rows, index_t heads, index_t kv_heads, index_t size, index_t width, index_t window,
                              const index_t* positions, const bf16* qkv, index_t qkv_stride, bf16* keys, bf16* values,
                              bf16* out, index_t out_stride) {
    index_t repeats = heads / kv_heads;
#pragma omp parallel
    {
        std::vector<float> scores(width);
#pragma omp for schedule(static) collapse(2)
        for (index_t i = 0; i < rows; i++)
            for (index_t g = 0; g < kv_heads; g++) {
                const bf16* row = qkv + i * qkv_stride;
                bf16* k = keys + (i * kv_heads + g) * width * size;
                bf16* v = values + (i * kv_heads + g) * width * size;
                index_t at = positions[i], first = window > 0 && at >= window ? at - window + 1 : 0;
                std::memcpy(k + at * size, row + (heads + g) * size, size * sizeof(bf16));
                std::memcpy(v + at * size, row + (heads + kv_heads + g) * size, size * sizeof(bf16));
                for (index_t h = g * repeats; h < (g + 1) * repeats; h++) {
                    scores_of(row + h * size, k, size, first / 16 * 16, at + 1, scores.data());
                    softmax(scores.data(), first, at + 1);
                    weigh(scores.data(), v, size, first, at + 1, out + i * out_stride + h * size);
                }
            }
    }
}

// Prompt tokens start … start + length - 1 of one sequence, whose keys and values are in one slot, new ones included.
// qkv (length, (H + 2 HK) size), keys and values (HK, width, size). A token's result depends on its position and on
// the tokens before it, never on the cut of a prompt: sums run over all keys in order, and unseen ones add exact zeros.
EXPORT void sarto_attend_chunk(index_t start, index_t length, index_t heads, index_t kv_heads, index_t size,
                               index_t width, index_t window, const bf16* qkv, index_t qkv_stride, const bf16* keys,
                               const bf16* values, bf16* out, index_t out_stride) {
    index_t repeats = heads / kv_heads, end = start + length;
    index_t low = window > 0 && start >= window ? (start - window + 1) / PANEL * PANEL : 0;  // the first key in use
    index_t blocks = (end - low + PANEL - 1) / PANEL, span = blocks * PANEL;
    index_t tiles = (length * repeats + TILE - 1) / TILE;
    std::vector<bf16> packed_keys(kv_heads * span * size), packed_values(kv_heads * span * size);
#pragma omp parallel
    {
        // keys as (blocks, size / 2, PANEL, 2), values as (size / PANEL, span / 2, PANEL, 2), zeros after the last
#pragma omp for schedule(static) collapse(2)
        for (index_t g = 0; g < kv_heads; g++)
            for (index_t block = 0; block < blocks; block++) {
                index_t from = block * PANEL, last = end - low - from < PANEL ? end - low - from : PANEL;
                const bf16* k = keys + (g * width + low + from) * size;
                const bf16* v = values + (g * width + low + from) * size;
                bf16* to = packed_keys.data() + (g * span + from) * size;
                for (index_t j = 0; j < last; j++)
                    for (index_t d = 0; d < size / 2; d++) std::memcpy(to + (d * PANEL + j) * 2, k + j * size + 2 * d, 4);
                for (index_t j = 0; j < last; j++)
                    for (index_t d = 0; d < size; d++)
                        packed_values[g * span * size + d / PANEL * span * PANEL + (from + j) / 2 * 2 * PANEL +
                                      d % PANEL * 2 + j % 2] = v[j * size + d];
            }
        std::vector<float> scores(TILE * span);
        std::vector<bf16> weights(TILE * span), queries(TILE * size);
#pragma omp for schedule(dynamic) collapse(2)
        for (index_t g = 0; g < kv_heads; g++)
            for (index_t tile = 0; tile < tiles; tile++) {
                index_t first = tile * TILE;  // rows are (token, head of the group)
                int rows = int(length * repeats - first < TILE ? length * repeats - first : TILE);
                index_t newest = start + (first + rows - 1) / repeats, used = (newest - low) / PANEL + 1;
                for (int m = 0; m < rows; m++) {
                    index_t token = (first + m) / repeats, head = g * repeats + (first + m) % repeats;
                    std::memcpy(&queries[m * size], qkv + token * qkv_stride + head * size, size * sizeof(bf16));
                }
                for (index_t block = 0; block < used; block++) {
                    float sums[TILE * PANEL] = {};
                    const bf16* k = packed_keys.data() + (g * span + block * PANEL) * size;
                    add<2>(rows, {queries.data(), size}, Plain<2>{k}, size / 2, sums);
                    for (int m = 0; m < rows; m++)
                        std::memcpy(&scores[m * span + block * PANEL], sums + m * PANEL, PANEL * sizeof(float));
                }
                for (int m = 0; m < rows; m++) {
                    index_t at = start + (first + m) / repeats;
                    index_t from = (window > 0 && at >= window ? at - window + 1 : 0) - low, to = at + 1 - low;
                    float* row = &scores[m * span];
                    softmax(row, from, to);
                    for (index_t j = 0; j < from; j++) row[j] = 0.f;
                    for (index_t j = to; j < used * PANEL; j++) row[j] = 0.f;
#pragma omp simd
                    for (index_t j = 0; j < used * PANEL; j++) store(&weights[m * span + j], row[j]);
                }
                for (index_t part = 0; part < size / PANEL; part++) {
                    float sums[TILE * PANEL] = {};
                    const bf16* v = packed_values.data() + (g * span * size + part * span * PANEL);
                    add<2>(rows, {weights.data(), span}, Plain<2>{v}, used * PANEL / 2, sums);
                    for (int m = 0; m < rows; m++) {
                        index_t token = (first + m) / repeats, head = g * repeats + (first + m) % repeats;
                        finish(1, PANEL, sums + m * PANEL, out + token * out_stride + head * size + part * PANEL, 0);
                    }
                }
            }
    }
}

#pragma GCC pop_options
#else
EXPORT int sarto_panels_work() { return 0; }
#endif
