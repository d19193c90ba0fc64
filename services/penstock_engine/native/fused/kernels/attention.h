// Attention of a chunk's rows to the pages of their sequence, for one key-value head at a time.
//
// Keys are taken 32 positions at a time from position 0 on, whatever the page size and whatever the
// row: scores, running maximum and weighted sums (online softmax, https://arxiv.org/abs/1805.02867)
// of a row come out the same alone, among drafts and inside a prefill chunk. A tile's keys are
// transposed once for all rows and query heads that read them, so that scores need no sums across lanes.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "vec.h"

namespace penstock {

constexpr int kTileKeys = 32;
constexpr int kTileVectors = kTileKeys / kLanes;
constexpr int kSlice = 64;  // of a head's dimensions, summed together
constexpr int kSliceVectors = kSlice / kLanes;
#if defined(__AVX512F__)
constexpr int kQueryTile = 4;
#else
constexpr int kQueryTile = 1;
#endif

struct HeadShape {
  int heads;
  int kv_heads;
  int dim;  // even
  int group() const { return heads / kv_heads; }
};

// The pages of one layer: [pages, block, 2, kv_heads, dim].
template <typename Element>
struct Pages {
  Element* base;
  int block;
  HeadShape shape;

  int64_t token() const { return int64_t(2) * shape.kv_heads * shape.dim; }
  Element* key(const int32_t* table, int position, int head) const {
    int64_t slot = int64_t(table[position / block]) * block + position % block;
    return base + slot * token() + int64_t(head) * shape.dim;
  }
  Element* value_of(Element* key) const { return key + int64_t(shape.kv_heads) * shape.dim; }
};

// How keys meet queries. In bfloat16 two dimensions at a time where the CPU can.
template <typename Element>
struct Scores {
  using Word = float;
  static int words(int dim) { return dim; }

  static void put_query(float* to, const float* from, int dim) {
    std::memcpy(to, from, sizeof(float) * dim);
  }

  static void spread(U32x16 words, int first, int word, float* keys, int at);

  static F32x16 add(F32x16 sum, float query, const float* keys) {
    return fused(load(keys), query, sum);
  }
};

template <>
inline void Scores<float>::spread(U32x16 words, int, int word, float* keys, int at) {
  store(keys + word * kTileKeys + at, words);
}

#if defined(__AVX512BF16__)
template <>
struct Scores<BF16> {
  using Word = uint32_t;
  static int words(int dim) { return dim / 2; }

  static void put_query(uint32_t* to, const float* from, int dim) {
    store_row(reinterpret_cast<BF16*>(to), from, dim);
  }

  static void spread(U32x16 words, int, int word, uint32_t* keys, int at) {
    store(keys + word * kTileKeys + at, words);
  }

  static F32x16 add(F32x16 sum, uint32_t query, const uint32_t* keys) {
    return (F32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(query),
                                    load_as<__m512bh>(keys));
  }
};
#else
template <>
inline void Scores<BF16>::spread(U32x16 words, int, int word, float* keys, int at) {
  store(keys + 2 * word * kTileKeys + at, U32x16(words << 16));
  store(keys + (2 * word + 1) * kTileKeys + at, U32x16(words & 0xffff0000u));
}
#endif

// One thread's working memory: queries of a job, their running softmax, a tile of keys.
template <typename Element>
class Attention {
 public:
  using Word = typename Scores<Element>::Word;

  Attention(HeadShape shape, int rows)
      : shape_(shape), width_((shape.dim + kSlice - 1) / kSlice * kSlice) {
    int queries = rows * shape.group();
    queries_.resize(int64_t(queries) * width_);
    sums_.resize(int64_t(queries) * width_);
    most_.resize(queries);
    totals_.resize(queries);
    scores_.resize(int64_t(queries) * kTileKeys);
    keys_.resize(int64_t(width_) * kTileKeys);
    values_.resize(int64_t(kSlice) * kTileKeys);
  }

  // Begin a job of up to as many rows as it was made for; query(row, head in group) gives its floats.
  template <typename Query>
  void begin(int rows, Query&& query) {
    count_ = rows * shape_.group();
    for (int q = 0; q < count_; q++)
      Scores<Element>::put_query(&queries_[int64_t(q) * width_],
                                 query(q / shape_.group(), q % shape_.group()), shape_.dim);
    std::fill_n(sums_.begin(), int64_t(count_) * width_, 0.0f);
    std::fill_n(most_.begin(), count_, -std::numeric_limits<float>::infinity());
    std::fill_n(totals_.begin(), count_, 0.0f);
  }

  // Attend to positions [0, position of each row], the first row's being `position`.
  void attend(const Pages<Element>& pages, const int32_t* table, int head, int position) {
    int last = position + count_ / shape_.group() - 1;
    for (int tile = 0; tile <= last; tile += kTileKeys) {
      int keys = std::min(kTileKeys, last + 1 - tile);
      for (int i = 0; i < keys; i++) from_[i] = pages.key(table, tile + i, head);
      transpose_keys(keys);
      score();
      for (int q = 0; q < count_; q++) weigh(q, position + q / shape_.group() - tile);
      for (int i = 0; i < keys; i++) from_[i] = pages.value_of(from_[i]);
      add_values(keys);
    }
  }

  // The result of a row and a head of the group, divided by its total weight.
  void result(int query, float* to) const {
    float inverse = 1.0f / totals_[query];
    for (int i = 0; i < shape_.dim; i++) to[i] = sums_[int64_t(query) * width_ + i] * inverse;
  }

 private:
  void transpose_keys(int keys) {
    constexpr int kWordElements = 4 / int(sizeof(Element));
    const int words = shape_.dim / kWordElements;
    for (int at = 0; at < kTileKeys; at += kLanes) {
      for (int first = 0; first < words; first += kLanes) {
        U32x16 square[kLanes] = {};
        int some = std::min(kLanes, words - first);
        for (int i = 0; i < kLanes && at + i < keys; i++) {
          const Element* from = from_[at + i] + first * kWordElements;
          if (some == kLanes) square[i] = load_as<U32x16>(from);
          else std::memcpy(&square[i], from, 4 * some);
        }
        transpose(square);
        for (int i = 0; i < some; i++)
          Scores<Element>::spread(square[i], first, first + i, keys_.data(), at);
      }
    }
  }

  void score() {
    int q = 0;
    for (; q + kQueryTile <= count_; q += kQueryTile) score_tile<kQueryTile>(q);
    for (; q < count_; q++) score_tile<1>(q);
  }

  template <int queries>
  void score_tile(int first) {
    F32x16 sums[queries][kTileVectors] = {};
    const Word* query = &queries_[int64_t(first) * width_];
    const int words = Scores<Element>::words(shape_.dim);
    for (int word = 0; word < words; word++)
      for (int q = 0; q < queries; q++)
        for (int v = 0; v < kTileVectors; v++)
          sums[q][v] = Scores<Element>::add(sums[q][v], query[int64_t(q) * width_ + word],
                                            &keys_[word * kTileKeys + v * kLanes]);
    for (int q = 0; q < queries; q++)
      for (int v = 0; v < kTileVectors; v++)
        store(&scores_[int64_t(first + q) * kTileKeys + v * kLanes], sums[q][v]);
  }

  // Scores to weights; what was summed before shrinks if a larger score came. The query sees the
  // tile's keys up to `seen`; those after it weigh exactly nothing.
  void weigh(int q, int seen) {
    if (seen < 0) {
      std::fill_n(&scores_[int64_t(q) * kTileKeys], kTileKeys, 0.0f);
      return;
    }
    const F32x16 nothing = splat(-std::numeric_limits<float>::infinity());
    const float scale = 1.0f / std::sqrt(float(shape_.dim));
    float* scores = &scores_[int64_t(q) * kTileKeys];
    F32x16 weights[kTileVectors], most = nothing;
    for (int v = 0; v < kTileVectors; v++) {
      const I32x16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      weights[v] = index + v * kLanes <= seen ? load(scores + v * kLanes) * scale : nothing;
      most = larger(most, weights[v]);
    }
    float top = std::max(most_[q], largest(most));
    F32x16 total = {};
    for (int v = 0; v < kTileVectors; v++) {
      weights[v] = exponential(weights[v] - splat(top));
      store(scores + v * kLanes, weights[v]);
      total += weights[v];
    }
    if (top > most_[q]) {
      F32x16 shrink = exponential(splat(most_[q] - top));
      float* sums = &sums_[int64_t(q) * width_];
      for (int i = 0; i < width_; i += kLanes) store(sums + i, load(sums + i) * shrink);
      totals_[q] *= shrink[0];
      most_[q] = top;
    }
    totals_[q] += sum(total);
  }

  void add_values(int keys) {
    for (int slice = 0; slice < shape_.dim; slice += kSlice) {
      const Element* rows[kTileKeys];
      int some = std::min(kSlice, shape_.dim - slice);
      for (int i = 0; i < keys; i++) {
        rows[i] = from_[i] + slice;
        if (some == kSlice) continue;
        // A partial slice is read from a copy: beyond the head lies another's memory, or nobody's.
        Element* copy = &values_[int64_t(i) * kSlice];
        std::copy_n(rows[i], some, copy);
        rows[i] = copy;
      }
      int q = 0;
      for (; q + kQueryTile <= count_; q += kQueryTile) add_slice<kQueryTile>(q, slice, rows, keys);
      for (; q < count_; q++) add_slice<1>(q, slice, rows, keys);
    }
  }

  template <int queries>
  void add_slice(int first, int slice, const Element* const* rows, int keys) {
    F32x16 sums[queries][kSliceVectors];
    const float* weights = &scores_[int64_t(first) * kTileKeys];
    float* target = &sums_[int64_t(first) * width_ + slice];
    for (int q = 0; q < queries; q++)
      for (int v = 0; v < kSliceVectors; v++)
        sums[q][v] = load(target + int64_t(q) * width_ + v * kLanes);
    for (int i = 0; i < keys; i++)
      for (int v = 0; v < kSliceVectors; v++) {
        F32x16 value = load(rows[i] + v * kLanes);
        for (int q = 0; q < queries; q++)
          sums[q][v] = fused(value, weights[q * kTileKeys + i], sums[q][v]);
      }
    for (int q = 0; q < queries; q++)
      for (int v = 0; v < kSliceVectors; v++)
        store(target + int64_t(q) * width_ + v * kLanes, sums[q][v]);
  }

  const HeadShape shape_;
  const int width_;
  int count_ = 0;
  Element* from_[kTileKeys];
  Buffer<Word> queries_, keys_;
  Buffer<float> sums_, most_, totals_, scores_;
  Buffer<Element> values_;
};

}  // namespace penstock
