// Attention of a chunk's rows to the pages of their sequence, for some of its key-value heads.
//
// Keys are taken 64 positions at a time from position 0 on, whatever the page size and whatever the
// row: scores, running maximum and weighted sums (online softmax, https://arxiv.org/abs/1805.02867)
// of a row come out the same alone, among drafts and inside a prefill chunk. A tile's keys are
// transposed once for all rows and query heads that read them, so that scores need no sums across lanes.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "ahead.h"
#include "vec.h"

namespace penstock {

constexpr int kTileKeys = 64;
constexpr int kTileVectors = kTileKeys / kLanes;
constexpr int kSlice = 64;  // of a head's dimensions, summed together
constexpr int kSliceVectors = kSlice / kLanes;
#if defined(__AVX512F__)
constexpr int kQueryTile = 4;
#else
constexpr int kQueryTile = 1;
#endif
constexpr int kPair = std::min(2, kQueryTile);
// Lines of what comes next that are asked for with each square of keys, and with each fourth dimension or key.
constexpr int kSquareLines = 16, kFourthLines = 8;

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
  // Keys of `count` consecutive positions; a division for each would cost more than a key's product.
  void locate(const int32_t* table, int position, int count, int head, Element** keys) const {
    while (count > 0) {
      int run = std::min(count, block - position % block);
      Element* at = key(table, position, head);
      for (int i = 0; i < run; i++, at += token()) *keys++ = at;
      position += run;
      count -= run;
    }
  }
  Element* value_of(Element* key) const { return key + int64_t(shape.kv_heads) * shape.dim; }
  // The next head's key, from a head's value.
  Element* next_head(Element* value) const { return value - int64_t(shape.kv_heads - 1) * shape.dim; }
};

// Positions [0, count) of a sequence, from a head on.
struct Span {
  const int32_t* table;
  int count, head;
};

// Sixteen positions' words of a transposed tile of keys, as rows of floats: one of a float, two of
// a pair of bfloat16.
inline void spread(U32x16 words, int word, float* keys, const float*) {
  store(keys + word * kTileKeys, words);
}
inline void spread(U32x16 words, int word, float* keys, const BF16*) {
  store(keys + 2 * word * kTileKeys, as_float(words << 16));
  store(keys + (2 * word + 1) * kTileKeys, as_float(words & 0xffff0000u));
}

// One thread's working memory: queries of a job, their running softmax, a tile of keys.
template <typename Element>
class Attention {
 public:
  Attention(HeadShape shape, int queries)
      : shape_(shape), width_((shape.dim + kSlice - 1) / kSlice * kSlice) {
    queries_.resize(int64_t(queries) * width_);
    sums_.resize(int64_t(queries) * width_);
    most_.resize(queries);
    totals_.resize(queries);
    scores_.resize(int64_t(queries) * kTileKeys);
    keys_.resize(int64_t(width_) * kTileKeys);
    values_.resize(int64_t(kSlice) * kTileKeys);
  }

  // Begin a job of `heads` key-value heads and `rows` rows, of no more queries than it was made for.
  // query(head, row, member of the head's group) gives a query's floats.
  template <typename Query>
  void begin(int heads, int rows, Query&& query) {
    const int group = shape_.group();
    heads_ = heads;
    rows_ = rows;
    for (int q = 0; q < heads * rows * group; q++)
      store_row(&queries_[int64_t(q) * width_],
                query(q / (rows * group), q / group % rows, q % group), shape_.dim);
    const int count = heads * rows * group;
    std::fill_n(sums_.begin(), int64_t(count) * width_, 0.0f);
    std::fill_n(most_.begin(), count, -std::numeric_limits<float>::infinity());
    std::fill_n(totals_.begin(), count, 0.0f);
  }

  // Attend to positions [0, position of each row], the first row's being `position`; the job's
  // first head is `head`. Heads take turns at each tile, since a position's heads lie together.
  // `following` is probably attended to after this.
  void attend(const Pages<Element>& pages, const Span& span, const Span& following) {
    const int group = shape_.group(), count = rows_ * group, last = span.count - 1;
    const int bytes = heads_ * shape_.dim * int(sizeof(Element));
    const int apart = shape_.kv_heads * shape_.dim * int(sizeof(Element));
    const int position = span.count - rows_;
    for (int tile = 0; tile <= last; tile += kTileKeys) {
      const int keys = std::min(kTileKeys, last + 1 - tile);
      const bool ends = tile + kTileKeys > last;
      const Span& then = ends ? following : span;
      const int first_then = ends ? 0 : tile + kTileKeys;
      const int coming = std::clamp(then.count - first_then, 0, kTileKeys);
      pages.locate(span.table, tile, keys, span.head, from_);
      pages.locate(then.table, first_then, coming, then.head, ahead_.at);
      ahead_.begin(coming, bytes, apart);
      for (int h = 0; h < heads_; h++) {
        const int first = h * count;
        transpose_keys(keys);
        score(first, first + count);
        for (int q = 0; q < count; q++) weigh(first + q, position + q / group - tile);
        for (int i = 0; i < keys; i++) from_[i] = pages.value_of(from_[i]);
        add_values(first, first + count, keys);
        for (int i = 0; i < keys; i++) from_[i] = pages.next_head(from_[i]);
      }
    }
  }

  // Of a query, in the order of begin(); divided by its total weight.
  void result(int query, float* to) const {
    float inverse = 1.0f / totals_[query];
    for (int i = 0; i < shape_.dim; i++) to[i] = sums_[int64_t(query) * width_ + i] * inverse;
  }

 private:
  void transpose_keys(int keys) {
    constexpr int kWordElements = 4 / int(sizeof(Element));
    const int words = shape_.dim / kWordElements;
    for (int at = 0; at < keys; at += kLanes) {
      for (int first = 0; first < words; first += kLanes) {
        U32x16 square[kLanes];
        const int some = std::min(kLanes, words - first);
        if (some == kLanes && at + kLanes <= keys) {
          PENSTOCK_UNROLL for (int i = 0; i < kLanes; i++)
            square[i] = load_as<U32x16>(from_[at + i] + first * kWordElements);
        } else {
          for (int i = 0; i < kLanes; i++) {
            square[i] = U32x16{};
            if (at + i < keys)
              std::memcpy(&square[i], from_[at + i] + first * kWordElements, 4 * some);
          }
        }
        ahead_.fetch(kSquareLines);
        transpose(square);
        for (int i = 0; i < some; i++)
          spread(square[i], first + i, &keys_[at], static_cast<Element*>(nullptr));
      }
    }
  }

  void score(int q, int end) {
    for (; q + kQueryTile <= end; q += kQueryTile) score_tile<kQueryTile>(q);
    for (; q + kPair <= end; q += kPair) score_tile<kPair>(q);
    for (; q < end; q++) score_tile<1>(q);
  }

  template <int queries>
  void score_tile(int first) {
    F32x16 sums[queries][kTileVectors] = {};
    const float* query = &queries_[int64_t(first) * width_];
    for (int i = 0; i < shape_.dim; i++) {
      if (i % 4 == 0) ahead_.fetch(kFourthLines);
      PENSTOCK_UNROLL for (int v = 0; v < kTileVectors; v++) {
        F32x16 keys = load(&keys_[i * kTileKeys + v * kLanes]);
        PENSTOCK_UNROLL for (int q = 0; q < queries; q++)
          sums[q][v] = fused(keys, query[int64_t(q) * width_ + i], sums[q][v]);
      }
    }
    PENSTOCK_UNROLL for (int q = 0; q < queries; q++)
      PENSTOCK_UNROLL for (int v = 0; v < kTileVectors; v++)
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

  void add_values(int begin, int end, int keys) {
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
      int q = begin;
      for (; q + kQueryTile <= end; q += kQueryTile) add_slice<kQueryTile>(q, slice, rows, keys);
      for (; q + kPair <= end; q += kPair) add_slice<kPair>(q, slice, rows, keys);
      for (; q < end; q++) add_slice<1>(q, slice, rows, keys);
    }
  }

  template <int queries>
  void add_slice(int first, int slice, const Element* const* rows, int keys) {
    F32x16 sums[queries][kSliceVectors];
    const float* weights = &scores_[int64_t(first) * kTileKeys];
    float* target = &sums_[int64_t(first) * width_ + slice];
    PENSTOCK_UNROLL for (int q = 0; q < queries; q++)
      PENSTOCK_UNROLL for (int v = 0; v < kSliceVectors; v++)
        sums[q][v] = load(target + int64_t(q) * width_ + v * kLanes);
    for (int i = 0; i < keys; i++) {
      if (i % 4 == 0) ahead_.fetch(kFourthLines);
      PENSTOCK_UNROLL for (int v = 0; v < kSliceVectors; v++) {
        F32x16 value = load(rows[i] + v * kLanes);
        PENSTOCK_UNROLL for (int q = 0; q < queries; q++)
          sums[q][v] = fused(value, weights[q * kTileKeys + i], sums[q][v]);
      }
    }
    PENSTOCK_UNROLL for (int q = 0; q < queries; q++)
      PENSTOCK_UNROLL for (int v = 0; v < kSliceVectors; v++)
        store(target + int64_t(q) * width_ + v * kLanes, sums[q][v]);
  }

  const HeadShape shape_;
  const int width_;
  int heads_ = 0, rows_ = 0;
  Element* from_[kTileKeys];
  Ahead<Element, kTileKeys> ahead_;
  Buffer<float> queries_, keys_, sums_, most_, totals_, scores_;
  Buffer<Element> values_;
};

}  // namespace penstock
