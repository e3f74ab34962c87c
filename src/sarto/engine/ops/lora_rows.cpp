// Decoding, one token a row: low-rank terms with an adapter of its own in each row. The twin of linear.py in torch; a
// row's result never depends on the other rows of the batch.
//
// Compiled into the same library as engine/ops/kernels.cpp, in the same way. Strides are in elements.
#include "numbers.h"

namespace {

constexpr index_t TILE = 256;

// y += B (A x) for every row whose slot is not negative. A is (slots, inputs, total), its columns the factors of all
// projections; B is (slots, blocks * rank, width), block j of the output taking the factor of projection parts[j].
template <class T>
void lora_rows(index_t rows, index_t inputs, index_t total, index_t rank, index_t blocks, index_t width,
               const int32_t* slots, const int64_t* parts, const T* x, index_t x_stride, const T* a, const T* b, T* y,
               index_t y_stride) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (index_t i = 0; i < rows; i++) {
        if (slots[i] < 0) continue;
        std::vector<float> factors(total, 0.f);
        float* h = factors.data();
        const T* in = x + i * x_stride;
        const T* low = a + slots[i] * inputs * total;
        for (index_t k = 0; k < inputs; k++) {
            float value = load(in + k);
            const T* row = low + k * total;
#pragma omp simd
            for (index_t j = 0; j < total; j++) h[j] += value * load(row + j);
        }
        const T* high = b + slots[i] * blocks * rank * width;
        for (index_t block = 0; block < blocks; block++) {
            const float* factor = h + parts[block] * rank;
            for (index_t from = 0; from < width; from += TILE) {
                index_t count = width - from < TILE ? width - from : TILE;
                float sum[TILE] = {};
                for (index_t r = 0; r < rank; r++) {
                    const T* row = high + (block * rank + r) * width + from;
                    float value = factor[r];
#pragma omp simd
                    for (index_t j = 0; j < count; j++) sum[j] += value * load(row + j);
                }
                T* out = y + i * y_stride + block * width + from;
#pragma omp simd
                for (index_t j = 0; j < count; j++) store(out + j, load(out + j) + sum[j]);
            }
        }
    }
}

}  // namespace

EXPORT void sarto_lora_rows(int half, index_t rows, index_t inputs, index_t total, index_t rank, index_t blocks,
                            index_t width, const int32_t* slots, const int64_t* parts, const void* x, index_t x_stride,
                            const void* a, const void* b, void* y, index_t y_stride) {
    BOTH(half,
         lora_rows(rows, inputs, total, rank, blocks, width, slots, parts, (const bf16*)x, x_stride, (const bf16*)a,
                   (const bf16*)b, (bf16*)y, y_stride),
         lora_rows(rows, inputs, total, rank, blocks, width, slots, parts, (const float*)x, x_stride, (const float*)a,
                   (const float*)b, (float*)y, y_stride));
}
