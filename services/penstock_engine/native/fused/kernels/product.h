// Products of a few rows with a packed matrix, each weight read once for all of them.
//
// A matrix stands in panels of 64 columns: [columns / 64][depth / group][64][group], where `group`
// consecutive weights of a column are what one dot-product instruction takes. A panel's results
// are summed along the depth in one fixed order whatever the number of rows, so a row's result does
// not depend on its company.
#pragma once
#include <algorithm>
#include <vector>

#include "vec.h"

namespace penstock {

constexpr int kPanel = 64;
constexpr int kPanelVectors = kPanel / kLanes;

// How many rows share a pass over a panel: as many as their sums fit into registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 1;
#endif
// How far ahead weights are fetched, in bytes: the hardware's own fetching ends at each 4 KiB.
constexpr int kFetchAhead = 4096;

struct Matrix {
  const char* panels;
  const float* scales;    // a column's weight of one step; int8 only
  const int32_t* shifts;  // 128 times a column's sum: what unsigned activations add; int8 only
  const float* bias;      // or null
  int64_t columns;        // a multiple of 64
  int64_t depth;          // a multiple of 64
};

template <typename Sum, int rows>
using Tile = Sum[rows][kPanelVectors];

// What float inputs have in common.
struct FloatInputs {
  using Input = float;
  using Sum = F32x16;

  static F32x16 finish(Sum sum, const Matrix& matrix, int64_t column, float) {
    return matrix.scales ? sum * load(matrix.scales + column) : sum;
  }

  static float put(Input* to, const float* from, int64_t count) {
    std::memcpy(to, from, sizeof(float) * count);
    return 1.0f;
  }
};

// Weights that are widened to float as they are read.
template <typename Element>
struct Widened : FloatInputs {
  using Weight = Element;
  static constexpr int kGroup = 1;

  template <int count>
  static void add(Tile<Sum, count>& sums, const float* rows, int64_t stride, const Weight* w) {
    PENSTOCK_UNROLL for (int j = 0; j < kPanelVectors; j++) {
      F32x16 weights = load(w + j * kLanes);
      PENSTOCK_UNROLL for (int m = 0; m < count; m++)
        sums[m][j] = fused(weights, rows[m * stride], sums[m][j]);
    }
  }
};

using FloatWeights = Widened<float>;

// Two bfloat16 of a column stand in one word: the first is widened by a shift, the second by a mask.
// That and two multiplications beat the instruction made for it (vdpbf16ps), which takes two cycles
// on the CPUs this was measured on where a multiplication takes half a one; and inputs stay float.
struct BfloatWeights : FloatInputs {
  using Weight = BF16;
  static constexpr int kGroup = 2;

  template <int count>
  static void add(Tile<Sum, count>& sums, const float* rows, int64_t stride, const Weight* w) {
    PENSTOCK_UNROLL for (int j = 0; j < kPanelVectors; j++) {
      U32x16 words = load_as<U32x16>(w + 2 * j * kLanes);
      F32x16 first = as_float(words << 16), second = as_float(words & 0xffff0000u);
      PENSTOCK_UNROLL for (int m = 0; m < count; m++) {
        sums[m][j] = fused(first, rows[m * stride], sums[m][j]);
        sums[m][j] = fused(second, rows[m * stride + 1], sums[m][j]);
      }
    }
  }
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// Activations are quantised row by row to seven bits and a sign, stored from 1 to 255.
struct ByteWeights {
  using Weight = int8_t;
  using Input = uint8_t;
  static constexpr int kGroup = 4;
  using Sum = I32x16;

  static Sum dot(Sum sum, int32_t four, const int8_t* w) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), load_as<__m512i>(w));
#else
    __m256i halves[2], inputs = _mm256_set1_epi32(four);
    std::memcpy(halves, &sum, sizeof sum);
    for (int i = 0; i < 2; i++)
      halves[i] = _mm256_dpbusd_avx_epi32(halves[i], inputs, load_as<__m256i>(w + 32 * i));
    return load_as<Sum>(halves);
#endif
  }

  template <int count>
  static void add(Tile<Sum, count>& sums, const uint8_t* rows, int64_t stride, const int8_t* w) {
    PENSTOCK_UNROLL for (int j = 0; j < kPanelVectors; j++)
      PENSTOCK_UNROLL for (int m = 0; m < count; m++)
        sums[m][j] = dot(sums[m][j], load_as<int32_t>(rows + m * stride), w + j * kPanel);
  }

  static F32x16 finish(Sum sum, const Matrix& matrix, int64_t column, float scale) {
    Sum exact = sum - load_as<Sum>(matrix.shifts + column);
    return __builtin_convertvector(exact, F32x16) * (load(matrix.scales + column) * scale);
  }

  static float put(Input* to, const float* from, int64_t count) {
    F32x16 most = {};
    for (int64_t i = 0; i < count; i += kLanes) most = larger(most, absolute(load(from + i)));
    float bound = std::max(largest(most), 1e-20f);
    F32x16 inverse = splat(127.0f / bound);
    for (int64_t i = 0; i < count; i += kLanes) {
      I32x16 whole = __builtin_convertvector(rounded(load(from + i) * inverse), I32x16) + 128;
      typedef uint8_t U8x16 __attribute__((vector_size(16)));
      store(to + i, __builtin_convertvector(whole, U8x16));
    }
    return bound / 127.0f;
  }
};
#else
using ByteWeights = Widened<int8_t>;
#endif

// Rows on their way into a product, in the type its instruction takes.
template <typename Weights>
class Inputs {
 public:
  void resize(int64_t rows, int64_t depth) {
    depth_ = depth;
    if (int64_t(scales_.size()) < rows) scales_.resize(rows);
    if (int64_t(values_.size()) < rows * depth) values_.resize(rows * depth);
  }

  // `from` holds `depth` floats, those beyond the true depth zero.
  void put(int64_t row, const float* from) {
    scales_[row] = Weights::put(&values_[row * depth_], from, depth_);
  }

  const typename Weights::Input* row(int64_t row) const { return &values_[row * depth_]; }
  float scale(int64_t row) const { return scales_[row]; }
  int64_t depth() const { return depth_; }

 private:
  int64_t depth_ = 0;
  Buffer<typename Weights::Input> values_;
  Buffer<float> scales_;
};

template <typename Weights, int rows_in_tile, typename Take>
inline void multiply_tile(const Inputs<Weights>& inputs, const Matrix& matrix, int panel, int first,
                          Take& take) {
  Tile<typename Weights::Sum, rows_in_tile> sums = {};
  const auto* weights = reinterpret_cast<const typename Weights::Weight*>(matrix.panels) +
                        int64_t(panel) * kPanel * matrix.depth;
  const auto* rows = inputs.row(first);
  for (int64_t k = 0; k < matrix.depth; k += Weights::kGroup) {
    const char* ahead = reinterpret_cast<const char*>(weights) + kFetchAhead;
    for (int at = 0; at < int(sizeof(*weights)) * Weights::kGroup * kPanel; at += 64)
      __builtin_prefetch(ahead + at);
    Weights::template add<rows_in_tile>(sums, rows + k, inputs.depth(), weights);
    weights += Weights::kGroup * kPanel;
  }
  PENSTOCK_UNROLL for (int m = 0; m < rows_in_tile; m++) {
    alignas(64) float out[kPanel];
    PENSTOCK_UNROLL for (int j = 0; j < kPanelVectors; j++) {
      int64_t column = int64_t(panel) * kPanel + j * kLanes;
      F32x16 value = Weights::finish(sums[m][j], matrix, column, inputs.scale(first + m));
      if (matrix.bias) value += load(matrix.bias + column);
      store(out + j * kLanes, value);
    }
    take(first + m, out);
  }
}

// take(row, sums) gets the 64 results of a panel for each of `rows` rows.
template <typename Weights, typename Take>
inline void multiply(const Inputs<Weights>& inputs, const Matrix& matrix, int panel, int rows,
                     Take&& take) {
  // Tiles of nearly equal height: a last tile of one row would cost almost as much as a full one.
  int tiles = (rows + kTileRows - 1) / kTileRows;
  for (int tile = 0; tile < tiles; tile++) {
    int first = int(int64_t(rows) * tile / tiles);
    switch (int(int64_t(rows) * (tile + 1) / tiles) - first) {
#if defined(__AVX512F__)
      case 6: multiply_tile<Weights, 6>(inputs, matrix, panel, first, take); break;
      case 5: multiply_tile<Weights, 5>(inputs, matrix, panel, first, take); break;
      case 4: multiply_tile<Weights, 4>(inputs, matrix, panel, first, take); break;
      case 3: multiply_tile<Weights, 3>(inputs, matrix, panel, first, take); break;
      case 2: multiply_tile<Weights, 2>(inputs, matrix, panel, first, take); break;
#endif
      default: multiply_tile<Weights, 1>(inputs, matrix, panel, first, take);
    }
  }
}

}  // namespace penstock
