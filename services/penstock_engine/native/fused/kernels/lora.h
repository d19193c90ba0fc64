// Low-rank additions to a product's results: a row's own adapter, rows of others and of none beside it.
//
// The narrow product (inputs to a few ranks) is a stage of its own before the stage of the wide
// one, which then adds ranks times columns to each panel as it comes out. Sums run over depth and
// ranks in one fixed order, so a row's result does not depend on its company.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "team.h"
#include "vec.h"

extern "C" {

// What an adapter adds to one product; elements are of the type of keys and values.
struct PenstockLowRank {
  const void* down;       // [ranks / 16][depth][16]
  const void* up;         // rows of 32 columns: the ranks of one half panel, then those of another
  const int32_t* halves;  // [columns / 32][3]: first rank, number of ranks, first row in `up`
  int32_t ranks;          // of all parts together, a multiple of 16; 0 if nothing is added
};

struct PenstockAdapter {
  const PenstockLowRank* products;  // [layers][4]: query-key-value, output, gate-up, down
  int32_t ranks;                    // the most of any product
};
}

namespace penstock {

enum Product { kQueryKeyValue, kOutput, kGateUp, kDown, kProducts };

constexpr int kHalf = 32;    // columns of half a panel
constexpr int kSplit = 4;    // sums that run side by side along the depth
#if defined(__AVX512F__)
constexpr int kLoraRows = 4;  // rows of one adapter that share a pass over its narrow matrix
#else
constexpr int kLoraRows = 1;
#endif

template <typename Element>
class Lora {
 public:
  // Rows that share an adapter and are narrowed together.
  struct Tile {
    const PenstockAdapter* adapter;
    int count;
    int rows[kLoraRows];
  };

  // `adapters` has one of each chunk, null where there is none; it is null itself if there are none.
  void begin(const PenstockAdapter* const* adapters, const int32_t* chunk_rows, int chunks) {
    tiles_.clear();
    if (!adapters) return;
    of_row_.assign(chunk_rows[chunks], nullptr);
    order_.clear();
    ranks_ = 0;
    for (int chunk = 0; chunk < chunks; chunk++) {
      if (!adapters[chunk]) continue;
      ranks_ = std::max(ranks_, int64_t(adapters[chunk]->ranks));
      for (int row = chunk_rows[chunk]; row < chunk_rows[chunk + 1]; row++) {
        of_row_[row] = adapters[chunk];
        order_.emplace_back(adapters[chunk], row);
      }
    }
    std::sort(order_.begin(), order_.end());
    for (auto [adapter, row] : order_) {
      if (tiles_.empty() || tiles_.back().adapter != adapter || tiles_.back().count == kLoraRows)
        tiles_.push_back({adapter, 0, {}});
      tiles_.back().rows[tiles_.back().count++] = row;
    }
    int64_t size = int64_t(of_row_.size()) * ranks_;
    if (int64_t(narrow_.size()) < size) narrow_.resize(size);
  }

  bool any() const { return !tiles_.empty(); }

  // The narrow product of all adapted rows. inputs(row, i) gives the floats of a tile's i-th row.
  template <typename Inputs>
  void narrow(Team::Member& member, int layer, Product product, int depth, Inputs&& inputs) {
    member.stage(int(tiles_.size()), [&](int i) {
      const Tile& tile = tiles_[i];
      const PenstockLowRank& low = part(tile.adapter, layer, product);
      if (!low.ranks) return;
      const float* from[kLoraRows];
      for (int m = 0; m < tile.count; m++) from[m] = inputs(tile.rows[m], m);
      for (int rank = 0; rank < low.ranks; rank += kLanes) {
        const Element* down = static_cast<const Element*>(low.down) + int64_t(rank) * depth;
        switch (tile.count) {
#if defined(__AVX512F__)
          case 4: narrow_tile<4>(tile, from, down, depth, rank); break;
          case 3: narrow_tile<3>(tile, from, down, depth, rank); break;
          case 2: narrow_tile<2>(tile, from, down, depth, rank); break;
#endif
          default: narrow_tile<1>(tile, from, down, depth, rank);
        }
      }
    });
  }

  // Add to the 64 results of a panel what the row's adapter makes of its narrow product.
  void add(int layer, Product product, int row, int panel, float* sums) const {
    const PenstockAdapter* adapter = of_row_[row];
    if (!adapter) return;
    const PenstockLowRank& low = part(adapter, layer, product);
    if (!low.ranks) return;
    for (int half = 0; half < 2; half++) {
      const int32_t* range = low.halves + (panel * 2 + half) * 3;
      const float* narrow = &narrow_[row * ranks_ + range[0]];
      const Element* up = static_cast<const Element*>(low.up) + int64_t(range[2]) * kHalf;
      F32x16 even[2] = {load(sums), load(sums + kLanes)}, odd[2] = {};
      int rank = 0;
      for (; rank + 1 < range[1]; rank += 2, up += 2 * kHalf)
        PENSTOCK_UNROLL for (int j = 0; j < 2; j++) {
          even[j] = fused(load(up + j * kLanes), narrow[rank], even[j]);
          odd[j] = fused(load(up + kHalf + j * kLanes), narrow[rank + 1], odd[j]);
        }
      PENSTOCK_UNROLL for (int j = 0; j < 2; j++) {
        if (rank < range[1]) even[j] = fused(load(up + j * kLanes), narrow[rank], even[j]);
        store(sums + j * kLanes, even[j] + odd[j]);
      }
      sums += kHalf;
    }
  }

 private:
  static const PenstockLowRank& part(const PenstockAdapter* adapter, int layer, Product product) {
    return adapter->products[layer * kProducts + product];
  }

  template <int rows>
  void narrow_tile(const Tile& tile, const float* const* from, const Element* down, int depth,
                   int rank) {
    F32x16 sums[rows][kSplit] = {};
    for (int i = 0; i < depth; i += kSplit, down += kSplit * kLanes)
      PENSTOCK_UNROLL for (int s = 0; s < kSplit; s++) {
        F32x16 weights = load(down + s * kLanes);
        PENSTOCK_UNROLL for (int m = 0; m < rows; m++)
          sums[m][s] = fused(weights, from[m][i + s], sums[m][s]);
      }
    PENSTOCK_UNROLL for (int m = 0; m < rows; m++)
      store(&narrow_[tile.rows[m] * ranks_ + rank],
            (sums[m][0] + sums[m][1]) + (sums[m][2] + sums[m][3]));
  }

  std::vector<Tile> tiles_;
  std::vector<const PenstockAdapter*> of_row_;
  std::vector<std::pair<const PenstockAdapter*, int>> order_;
  Buffer<float> narrow_;  // [rows][ranks_]
  int64_t ranks_ = 0;
};

}  // namespace penstock
