// Sixteen floats at a time, in the compiler's own vector types: one source for AVX-512 and AVX2.
//
// Everything here rounds in a fixed order, so a row's numbers never depend on which rows share a
// step. For the same reason the library is built without -ffast-math and with -ffp-contract=off: which
// products are fused with a sum is written down, not chosen anew for each instance of a template.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Before loops over an array of sums: the compiler keeps it in registers only if no loop indexes it.
#define PENSTOCK_UNROLL _Pragma("GCC unroll 16")

namespace penstock {

constexpr int kLanes = 16;

typedef float F32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));
typedef int8_t I8x16 __attribute__((vector_size(16)));

// A bfloat16 as its bits; arithmetic is done in float.
struct BF16 {
  uint16_t bits;
};

template <typename V>
inline V load_as(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename V>
inline void store(void* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

inline F32x16 splat(float v) { return F32x16{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }

inline F32x16 load(const float* from) { return load_as<F32x16>(from); }

inline F32x16 as_float(U32x16 bits) { return (F32x16)bits; }

inline F32x16 load(const BF16* from) {
#if defined(__AVX512F__)
  // Left to itself the compiler widens it by halves.
  return as_float((U32x16)_mm512_cvtepu16_epi32(load_as<__m256i>(from)) << 16);
#endif
  return as_float(__builtin_convertvector(load_as<U16x16>(from), U32x16) << 16);
}

inline F32x16 load(const int8_t* from) {
  return __builtin_convertvector(load_as<I8x16>(from), F32x16);
}

// To the nearest, ties to even, as torch rounds.
inline BF16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline void store_row(float* to, const float* from, int count) {
  std::memcpy(to, from, sizeof(float) * count);
}

inline void store_row(BF16* to, const float* from, int count) {
  for (int i = 0; i < count; i++) to[i] = to_bf16(from[i]);
}

// a * b + c, rounded once.
inline F32x16 fused(F32x16 a, F32x16 b, F32x16 c) {
#if defined(__AVX512F__)
  return (F32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  return load_as<F32x16>(z);
#endif
}

inline F32x16 fused(F32x16 a, float b, F32x16 c) { return fused(a, splat(b), c); }

// A fixed tree, not left to the compiler.
inline float sum(F32x16 v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

inline float largest(F32x16 v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

inline F32x16 larger(F32x16 a, F32x16 b) { return a > b ? a : b; }
inline F32x16 smaller(F32x16 a, F32x16 b) { return a < b ? a : b; }
inline F32x16 absolute(F32x16 v) {
  return as_float((U32x16)v & 0x7fffffffu);
}

// Round to the nearest whole number, for |v| < 2^22: what lies beyond the mantissa is cut off.
inline F32x16 rounded(F32x16 v) {
  const F32x16 magic = splat(12582912.0f);
  return (v + magic) - magic;
}

// e^x with about 2 ulp, exactly 0 below -87. Source: Cephes expf, https://www.netlib.org/cephes/.
inline F32x16 exponential(F32x16 x) {
  F32x16 clamped = larger(smaller(x, splat(88.0f)), splat(-87.0f));
  F32x16 whole = rounded(clamped * 1.44269504088896341f);
  F32x16 rest = fused(whole, -0.693359375f, clamped);
  rest = fused(whole, 2.12194440e-4f, rest);
  F32x16 p = splat(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                     5.0000001201e-1f})
    p = fused(p, rest, splat(next));
  p = fused(p, rest * rest, rest + 1.0f);
  I32x16 power = (__builtin_convertvector(whole, I32x16) + 127) << 23;
  F32x16 result = p * as_float((U32x16)power);
  return x < splat(-87.0f) ? F32x16{} : result;
}

inline F32x16 silu(F32x16 gate) { return gate / (exponential(-gate) + 1.0f); }

// One of the four rounds of transposing 16x16 words: swap the off-diagonal blocks of size `half`.
template <int half, size_t... lane>
inline void swap_blocks(U32x16* rows, std::index_sequence<lane...>) {
  for (int i = 0; i < kLanes; i++) {
    if (i & half) continue;
    U32x16 a = rows[i], b = rows[i + half];
    rows[i] = __builtin_shufflevector(a, b, (lane & half ? kLanes + lane - half : lane)...);
    rows[i + half] = __builtin_shufflevector(a, b, (lane & half ? kLanes + lane : lane + half)...);
  }
}

// Transpose sixteen vectors of sixteen words in place.
inline void transpose(U32x16* rows) {
  constexpr auto lanes = std::make_index_sequence<kLanes>{};
  swap_blocks<8>(rows, lanes);
  swap_blocks<4>(rows, lanes);
  swap_blocks<2>(rows, lanes);
  swap_blocks<1>(rows, lanes);
}

// Vectors that begin at a cache line: a load across two costs double.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename Other>
  LineAllocator(const LineAllocator<Other>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* at, size_t) { ::operator delete(at, kLine); }
  template <typename Other>
  bool operator==(const LineAllocator<Other>&) const { return true; }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

}  // namespace penstock
