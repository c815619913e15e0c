// Sixteen floats at a time: the few vector operations that the kernels are written in, on AVX-512.
//
// AVX-512 with VNNI is needed. Where there are no bf16 products (before Zen 4 and Cooper Lake) they are made of two
// fused multiply-adds, in the same order everywhere, so that a result depends on the processor only.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__) || \
    !defined(__AVX512VNNI__)
#error "this processor has no AVX-512 with VNNI"
#endif

namespace cb {

constexpr int LANES = 16;

using f32x16 = __m512;
using i32x16 = __m512i;

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// A vector that begins at a cache line: registers are loaded from one line, not two, and two threads that write
// neighbouring panels do not share any.
template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t(64)); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t(64)); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};

template <class T>
using Lines = std::vector<T, LineAllocator<T>>;

// `body(i)` for each i below N, an integral constant each time: arrays that are indexed by it end up in registers, which
// those that a loop indexes do not always.
#define CB_INLINE __attribute__((always_inline))

template <class F, int... I>
CB_INLINE inline void each_of(F&& body, std::integer_sequence<int, I...>) {
    (body(std::integral_constant<int, I>{}), ...);
}

template <int N, class F>
CB_INLINE inline void each(F&& body) {
    each_of(body, std::make_integer_sequence<int, N>{});
}

// ---- bfloat16 ----

inline float bf16_to_f32(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t f32_to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline f32x16 load_bf16(const uint16_t* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}

// In integers and not by vcvtneps2bf16, which takes denormals for zero.
inline __m256i narrow_bf16(f32x16 x) {
    i32x16 bits = _mm512_castps_si512(x);
    i32x16 odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

// For values of which those below 1e-38 may become zero.
inline __m256i narrow_bf16_coarse(f32x16 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    return narrow_bf16(x);
#endif
}

inline void prefetch(const uint8_t* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch((const char*)from + at, _MM_HINT_T0);
}

inline void prefetch_far(const uint8_t* from, int64_t bytes) {  // into the second cache
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch((const char*)from + at, _MM_HINT_T1);
}

inline void store_bf16(uint16_t* to, f32x16 x) { _mm256_storeu_si256((__m256i*)to, narrow_bf16(x)); }

// ---- products ----
//
// Written as instructions because GCC 12 copies the sum of the intrinsics to another register and back, which costs a
// third of the rate, and does not use that the factor which all lanes share can be read from memory as it is.

// acc[i] += sum over j < 4 of b[4i + j] (unsigned) * a[j] (signed), a read from four bytes at `a`
CB_INLINE inline void dot_int8(i32x16& acc, i32x16 b, const void* a) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*(const int32_t(*)[1])a));
}

// acc[i] += sum over j < 4 of a[4i + j] (unsigned) * b[4i + j] (signed)
CB_INLINE inline void dot_int8(i32x16& acc, i32x16 a, i32x16 b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

// acc[i] += a[0] * b[2i] + a[1] * b[2i + 1], of bf16
CB_INLINE inline void dot_bf16(f32x16& acc, i32x16 b, const void* a) {
#ifdef __AVX512BF16__
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*(const int32_t(*)[1])a));
#else
    int32_t bits;
    std::memcpy(&bits, a, 4);
    const i32x16 high = _mm512_set1_epi32(int(0xffff0000));
    const f32x16 a0 = _mm512_castsi512_ps(_mm512_set1_epi32(bits << 16));
    const f32x16 a1 = _mm512_castsi512_ps(_mm512_set1_epi32(bits & int(0xffff0000)));
    acc = _mm512_fmadd_ps(a0, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
    acc = _mm512_fmadd_ps(a1, _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
#endif
}

// acc[i] += a * b[i], a read from memory
CB_INLINE inline void dot_f32(f32x16& acc, f32x16 b, const float* a) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*(const float(*)[1])a));
}

// ---- functions ----

// 2 to the power of x; relative error below 2e-7 (a polynomial of degree 6 on [-0.5, 0.5]). x below -126 gives 0.
inline f32x16 exp2_16(f32x16 x) {
    const f32x16 lowest = _mm512_set1_ps(-126.0f);
    __mmask16 alive = _mm512_cmp_ps_mask(x, lowest, _CMP_GE_OQ);
    x = _mm512_min_ps(_mm512_max_ps(x, lowest), _mm512_set1_ps(127.0f));
    f32x16 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    f32x16 f = _mm512_sub_ps(x, whole);
    f32x16 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_mov_ps(alive, _mm512_scalef_ps(p, whole));
}

// The same for x up to 0, to one part in 20,000: for results that are rounded to bf16.
inline f32x16 exp2_coarse(f32x16 x) {
    const f32x16 lowest = _mm512_set1_ps(-126.0f);
    const __mmask16 alive = _mm512_cmp_ps_mask(x, lowest, _CMP_GE_OQ);
    x = _mm512_max_ps(x, lowest);
    const f32x16 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const f32x16 f = _mm512_sub_ps(x, whole);
    f32x16 p = _mm512_set1_ps(9.6181291e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(alive, p, whole);
}

inline f32x16 silu_16(f32x16 x) {
    f32x16 e = exp2_16(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

}  // namespace cb
