// Numbers in memory, float or bf16 (as uint16_t), as sixteen floats in a register.
#pragma once

#include "simd.h"

namespace cb {

// The lanes that are left of `n` at `i`.
inline __mmask16 lanes_at(int64_t i, int64_t n) { return n - i >= LANES ? 0xffff : __mmask16((1u << (n - i)) - 1); }

inline f32x16 load16(const float* from, __mmask16 mask = 0xffff) { return _mm512_maskz_loadu_ps(mask, from); }

inline f32x16 load16(const uint16_t* from, __mmask16 mask = 0xffff) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

inline void store16(float* to, f32x16 x, __mmask16 mask = 0xffff) { _mm512_mask_storeu_ps(to, mask, x); }

inline void store16(uint16_t* to, f32x16 x, __mmask16 mask = 0xffff) {
    _mm256_mask_storeu_epi16(to, mask, narrow_bf16(x));
}

inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) { return bf16_to_f32(x); }
inline void from_float(float x, float& to) { to = x; }
inline void from_float(float x, uint16_t& to) { to = f32_to_bf16(x); }

// x as it would be after being kept in T.
template <class T>
inline f32x16 rounded(f32x16 x) {
    if constexpr (sizeof(T) == 4) return x;
    else return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow_bf16(x)), 16));
}

constexpr float LOG2_OF_E = 1.44269504089f;

// `exp2_16` of which NaN comes out as NaN: a run must see that a step went wrong.
inline f32x16 exp2_nan(f32x16 x) {
    return _mm512_mask_mov_ps(exp2_16(x), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

// The same to one part in 20,000, for x up to 0.
inline f32x16 exp2_coarse_nan(f32x16 x) {
    return _mm512_mask_mov_ps(exp2_coarse(x), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

// 1 / (1 + exp(-x)), for T to be kept in. Any x: far out it is 0 or 1, and NaN stays.
template <class T>
inline f32x16 sigmoid_16(f32x16 x) {
    constexpr bool fine = sizeof(T) == 4;
    const f32x16 one = _mm512_set1_ps(1.0f);
    // 2^128 is infinite. Of NaN and a number, min and max give their second argument.
    x = _mm512_min_ps(_mm512_set1_ps(128.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_OF_E)));
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
    const f32x16 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const f32x16 f = _mm512_sub_ps(x, whole);
    f32x16 p = _mm512_set1_ps(9.6181291e-3f);
    if (fine) {
        p = _mm512_fmadd_ps(_mm512_set1_ps(1.5403530e-4f), f, _mm512_set1_ps(1.3333558e-3f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    }
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, one);
    const f32x16 below = _mm512_add_ps(one, _mm512_scalef_ps(p, whole));
    return fine ? _mm512_div_ps(one, below) : _mm512_rcp14_ps(below);
}

// For an op of a type that is only known when it is called: `body((T*)nullptr)`.
template <class Body>
inline void with_type(int32_t is_bf16, Body&& body) {
    if (is_bf16) body((uint16_t*)nullptr);
    else body((float*)nullptr);
}

}  // namespace cb
