// Storage types, conversions and the exponential that the compiled pieces share. Everything here is private to the file
// that includes it, except functions marked EXPORT.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using bf16 = uint16_t;
using index_t = int64_t;

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) {
    uint32_t bits = uint32_t(*p) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void store(float* p, float value) { *p = value; }
inline void store(bf16* p, float value) {  // round to nearest even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits += 0x7fff + ((bits >> 16) & 1);
    *p = bf16(bits >> 16);
}

// e^x to about one unit in the last place; a polynomial that compilers turn into vector code without a math library.
inline float exponential(float x) {
    x = x < -87.f ? -87.f : x;
    x = x > 88.f ? 88.f : x;
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
// Every function in both storage types, selected by `half`.
#define BOTH(half, call_bf16, call_float) do { if (half) { call_bf16; } else { call_float; } } while (0)
