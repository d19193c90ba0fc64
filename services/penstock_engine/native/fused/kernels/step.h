// One step of a decoder: rows of several sequences in, KV pages written, logits of some rows out.
//
// A layer is five stages of a team: query-key-value product; rotation, KV write and attention; output
// product with residual; gate-up product with SiLU; down product with residual. What is cheap for a
// row and needed by all (norms, quantisation) is done by every thread for itself while rows are few,
// since a further stage would cost more, and shared among them when rows are many.
#pragma once
#include <memory>
#include <type_traits>

#include "attention.h"
#include "lora.h"
#include "product.h"
#include "team.h"

extern "C" {

struct PenstockLayer {
  penstock::Matrix query_key_value, output, gate_up, down;
  const float *attention_norm, *query_norm, *key_norm, *mlp_norm;  // head norms may be null
};

// Widths that rows are stored with are true ones rounded up to 64; norms are padded alike.
struct PenstockModel {
  int32_t weight_type, kv_type;  // 0 float, 1 bfloat16, 2 int8 (weights only)
  int32_t embedding_type;        // 0 float, 1 bfloat16
  int32_t layers, hidden, inner, vocabulary, heads, kv_heads, head_dim;
  int32_t block, threads;
  int64_t pages;
  float epsilon;
  const void* embedding;      // [vocabulary, hidden]
  const float *cosines, *sines;  // [positions, head_dim / 2]
  const PenstockLayer* layer;
  penstock::Matrix head;
  const float* norm;
  void* kv;  // [layers, pages, block, 2, kv_heads, head_dim]
  void* chores;  // what its threads do between steps (a shared Chores), or null
};

struct PenstockStep {
  int32_t rows, chunks, logits;
  int32_t hidden;             // not 0: out takes the normed hidden states instead of logits
  const int32_t* tokens;      // [rows]
  const int32_t* chunk_rows;  // [chunks + 1]: a chunk's first row; rows of a chunk are consecutive
  const int32_t* positions;   // [chunks]: its first row's position
  const int32_t* tables;      // page tables of all chunks, one after the other
  const int64_t* table_starts;  // [chunks]
  const int32_t* logit_rows;  // [logits]
  float* out;                 // [logits, vocabulary], or [logits, hidden size]
  const PenstockAdapter* const* adapters;  // [chunks], null where there is none; null if nowhere
};
}

namespace penstock {

class AnyStepper {
 public:
  virtual ~AnyStepper() = default;
  virtual void step(const PenstockStep& step) = 0;
};

inline std::shared_ptr<Chores> shared_chores(void* handle) {
  return handle ? *static_cast<std::shared_ptr<Chores>*>(handle) : nullptr;
}

inline int padded(int width) { return (width + kPanel - 1) / kPanel * kPanel; }

template <typename Weights, typename Element>
class Stepper : public AnyStepper {
 public:
  explicit Stepper(const PenstockModel& model)
      : m_(model),
        shape_{model.heads, model.kv_heads, model.head_dim},
        hidden_(padded(model.hidden)),
        inner_(padded(model.inner)),
        attended_(padded(model.heads * model.head_dim)),
        job_rows_(std::max(4, 32 / shape_.group())),
        team_(model.threads, shared_chores(model.chores)) {
    for (int i = 0; i < model.threads; i++)
      threads_.emplace_back(new Scratch(shape_, std::max(job_rows_ * shape_.group(),
                                                         kFewRows * shape_.heads)));
  }

  void step(const PenstockStep& step) override {
    resize(step);
    team_.run([&](Team::Member& member) { compute(step, member); });
  }

 private:
  // What a thread needs for itself.
  struct Scratch {
    Scratch(HeadShape shape, int queries) : attention(shape, queries), head(shape.dim) {}
    Attention<Element> attention;
    Buffer<float> row, head;
    Inputs<Weights> inputs;
    Buffer<float> adapted;  // inputs of a tile of adapted rows, where products take no floats
  };

  // Rows [begin, end) of a chunk and some key-value heads: what one thread attends with.
  struct Job {
    int chunk, begin, end, head, heads;
  };

  void resize(const PenstockStep& step) {
    int64_t rows = step.rows;
    qkv_width_ = int(m_.layer[0].query_key_value.columns);
    residual_.resize(rows * hidden_);
    qkv_.resize(rows * qkv_width_);
    wide_.resize(rows * std::max(attended_, inner_), 0.0f);
    inputs_.resize(rows, std::max({hidden_, inner_, attended_}));
    for (auto& thread : threads_) thread->row.resize(std::max({hidden_, inner_, attended_}));
    divide(step);
    lora_.begin(step.adapters, step.chunk_rows, step.chunks);
  }

  // A few rows of a sequence are bound by reading its keys: one job for all heads reads memory in
  // order. Otherwise, and where that would leave threads idle, each head is a job.
  void divide(const PenstockStep& step) {
    jobs_.clear();
    keys_with_attention_ = true;
    for (int chunk = 0; chunk < step.chunks; chunk++) {
      int first = step.chunk_rows[chunk], end = step.chunk_rows[chunk + 1];
      bool together = end - first <= kFewRows && step.chunks >= 2 * team_.size();
      int heads = together ? m_.kv_heads : 1;
      keys_with_attention_ = keys_with_attention_ && end - first <= job_rows_;
      for (int row = first; row < end; row += job_rows_)
        for (int head = 0; head < m_.kv_heads; head += heads)
          jobs_.push_back({chunk, row, std::min(end, row + job_rows_), head, heads});
    }
  }

  void compute(const PenstockStep& step, Team::Member& member) {
    Scratch& mine = *threads_[member.rank];
    member.stage(step.rows, [&](int row) { embed(step.tokens[row], residual(row)); });
    for (int i = 0; i < m_.layers; i++) {
      const PenstockLayer& layer = m_.layer[i];
      {
        auto& in = normed(member, mine, step.rows, layer.attention_norm);
        adapt(member, mine, i, kQueryKeyValue, in, layer.attention_norm);
        member.stage(qkv_width_ / kPanel, [&](int panel) {
          multiply(in, layer.query_key_value, panel, step.rows, [&](int row, float* sums) {
            if (lora_.any()) lora_.add(i, kQueryKeyValue, row, panel, sums);
            store_row(&qkv_[int64_t(row) * qkv_width_ + panel * kPanel], sums, kPanel);
          });
        });
      }
      attend(step, member, mine, i);
      add_product(member, mine, step.rows, attended_, layer.output, i, kOutput);
      {
        auto& in = normed(member, mine, step.rows, layer.mlp_norm);
        adapt(member, mine, i, kGateUp, in, layer.mlp_norm);
        member.stage(int(layer.gate_up.columns / kPanel), [&](int panel) {
          multiply(in, layer.gate_up, panel, step.rows, [&](int row, float* sums) {
            if (lora_.any()) lora_.add(i, kGateUp, row, panel, sums);
            gate(row, panel, sums);
          });
        });
      }
      add_product(member, mine, step.rows, inner_, layer.down, i, kDown);
    }
    if (step.logits) head(step, member, mine);
  }

  void embed(int token, float* to) const {
    int64_t at = int64_t(token) * m_.hidden;
    std::fill(to + m_.hidden, to + hidden_, 0.0f);
    if (m_.embedding_type == 0) {
      store_row(to, static_cast<const float*>(m_.embedding) + at, m_.hidden);
      return;
    }
    const BF16* from = static_cast<const BF16*>(m_.embedding) + at;
    for (int i = 0; i < m_.hidden; i++) {
      uint32_t bits = uint32_t(from[i].bits) << 16;
      std::memcpy(to + i, &bits, 4);
    }
  }

  // Source: RMSNorm, https://arxiv.org/abs/1910.07467. `width` is padded with zeros, `count` true.
  void normalise(const float* from, const float* weight, float* to, int width, int count) const {
    F32x16 squares = {};
    for (int i = 0; i < width; i += kLanes) {
      F32x16 v = load(from + i);
      squares = fused(v, v, squares);
    }
    float scale = 1.0f / std::sqrt(sum(squares) / count + m_.epsilon);
    for (int i = 0; i < width; i += kLanes) store(to + i, load(from + i) * scale * load(weight + i));
  }

  // Rows as a product takes them, prepared by each thread alone or by all for all.
  template <typename Prepare>
  const Inputs<Weights>& prepared(Team::Member& member, Scratch& mine, int rows, int depth,
                                  Prepare&& prepare) {
    if (int64_t(rows) * depth <= kAloneUpTo || team_.size() == 1) {
      mine.inputs.resize(rows, depth);
      for (int row = 0; row < rows; row++) mine.inputs.put(row, prepare(row));
      return mine.inputs;
    }
    // The first to come sets the width; all set the same one, long after the stage that used another.
    member.stage(1, [&](int) { inputs_.resize(rows, depth); });
    member.stage(rows, [&](int row) { inputs_.put(row, prepare(row)); });
    return inputs_;
  }

  const Inputs<Weights>& normed(Team::Member& member, Scratch& mine, int rows, const float* weight) {
    return prepared(member, mine, rows, hidden_, [&](int row) {
      normalise(residual(row), weight, mine.row.data(), hidden_, m_.hidden);
      return mine.row.data();
    });
  }

  // The stage that adapters need before a product of normed rows.
  void adapt(Team::Member& member, Scratch& mine, int layer, Product product,
             const Inputs<Weights>& in, const float* weight) {
    if (!lora_.any()) return;
    mine.adapted.resize(int64_t(kLoraRows) * hidden_);
    lora_.narrow(member, layer, product, hidden_, [&](int row, int i) {
      if constexpr (std::is_same_v<typename Weights::Input, float>) return in.row(row);
      float* to = &mine.adapted[int64_t(i) * hidden_];
      normalise(residual(row), weight, to, hidden_, m_.hidden);
      return static_cast<const float*>(to);
    });
  }

  void add_product(Team::Member& member, Scratch& mine, int rows, int depth, const Matrix& matrix,
                   int layer, Product product) {
    const auto row_of = [&](int row) { return &wide_[int64_t(row) * depth]; };
    auto& in = prepared(member, mine, rows, depth, row_of);
    if (lora_.any())
      lora_.narrow(member, layer, product, depth, [&](int row, int) { return row_of(row); });
    member.stage(int(matrix.columns / kPanel), [&](int panel) {
      multiply(in, matrix, panel, rows, [&](int row, float* sums) {
        if (lora_.any()) lora_.add(layer, product, row, panel, sums);
        float* to = residual(row) + panel * kPanel;
        for (int i = 0; i < kPanel; i += kLanes) store(to + i, load(to + i) + load(sums + i));
      });
    });
  }

  // A panel of the gate-up matrix holds 32 gate columns, then the 32 up columns that belong to them.
  void gate(int row, int panel, const float* sums) {
    float* to = &wide_[int64_t(row) * inner_ + panel * (kPanel / 2)];
    for (int i = 0; i < kPanel / 2; i += kLanes)
      store(to + i, silu(load(sums + i)) * load(sums + kPanel / 2 + i));
  }

  void attend(const PenstockStep& step, Team::Member& member, Scratch& mine, int layer) {
    const int64_t layer_size = m_.pages * m_.block * 2 * m_.kv_heads * m_.head_dim;
    Pages<Element> pages{static_cast<Element*>(m_.kv) + layer * layer_size, m_.block, shape_};
    const int jobs = int(jobs_.size());
    // A job that holds all its chunk's new keys writes them itself; otherwise all are written first.
    if (!keys_with_attention_)
      member.stage(jobs, [&](int i) { write_keys(step, mine, layer, pages, jobs_[i]); });
    member.stage(jobs, [&](int i) {
      if (keys_with_attention_) write_keys(step, mine, layer, pages, jobs_[i]);
      run_job(step, mine, layer, pages, i);
    });
  }

  void write_keys(const PenstockStep& step, Scratch& mine, int layer, const Pages<Element>& pages,
                  const Job& job) {
    const int dim = m_.head_dim;
    for (int row = job.begin; row < job.end; row++)
      for (int head = job.head; head < job.head + job.heads; head++) {
        int position = position_of(step, job.chunk, row);
        Element* to = pages.key(step.tables + step.table_starts[job.chunk], position, head);
        turn(row, m_.heads + head, m_.layer[layer].key_norm, position, mine.head.data());
        store_row(to, mine.head.data(), dim);
        const float* value = heads_of(row) + (m_.heads + m_.kv_heads + head) * dim;
        store_row(pages.value_of(to), value, dim);
      }
  }

  // What a job attends to, up to its last row.
  Span span_of(const PenstockStep& step, const Job& job) const {
    return {step.tables + step.table_starts[job.chunk],
            position_of(step, job.chunk, job.end - 1) + 1, job.head};
  }

  void run_job(const PenstockStep& step, Scratch& mine, int layer, const Pages<Element>& pages,
               int number) {
    const Job& job = jobs_[number];
    const int group = shape_.group(), rows = job.end - job.begin;
    mine.attention.begin(job.heads, rows, [&](int head, int row, int member) {
      int position = position_of(step, job.chunk, job.begin + row);
      turn(job.begin + row, (job.head + head) * group + member, m_.layer[layer].query_norm, position,
           mine.head.data());
      return mine.head.data();
    });
    const Job& next = jobs_[std::min(number + 1, int(jobs_.size()) - 1)];
    mine.attention.attend(pages, span_of(step, job), span_of(step, next));
    for (int q = 0; q < job.heads * rows * group; q++) {
      int head = (job.head + q / (rows * group)) * group + q % group;
      float* row = &wide_[int64_t(job.begin + q / group % rows) * attended_];
      mine.attention.result(q, row + head * m_.head_dim);
    }
    // What pads a row may be left from another product's rows.
    for (int row = job.begin; job.head == 0 && row < job.end; row++)
      std::fill(&wide_[int64_t(row) * attended_ + m_.heads * m_.head_dim],
                wide_.data() + int64_t(row + 1) * attended_, 0.0f);
  }

  // A head of a row, normalised if the model does that, rotated. Source: RoFormer,
  // https://arxiv.org/abs/2104.09864; halves are pairs, as in Hugging Face's checkpoints.
  void turn(int row, int head, const float* norm, int position, float* to) const {
    const int dim = m_.head_dim, half = dim / 2;
    const float* from = heads_of(row) + head * dim;
    float scale = 1.0f;
    if (norm) {
      float squares = 0;
      for (int i = 0; i < dim; i++) squares += from[i] * from[i];
      scale = 1.0f / std::sqrt(squares / dim + m_.epsilon);
    }
    const float* cosines = m_.cosines + int64_t(position) * half;
    const float* sines = m_.sines + int64_t(position) * half;
    for (int i = 0; i < half; i++) {
      float a = from[i], b = from[i + half];
      if (norm) a = a * scale * norm[i], b = b * scale * norm[i + half];
      to[i] = a * cosines[i] - b * sines[i];
      to[i + half] = b * cosines[i] + a * sines[i];
    }
  }

  void head(const PenstockStep& step, Team::Member& member, Scratch& mine) {
    if (step.hidden) {
      member.stage(step.logits, [&](int i) {
        normalise(residual(step.logit_rows[i]), m_.norm, mine.row.data(), hidden_, m_.hidden);
        store_row(step.out + int64_t(i) * m_.hidden, mine.row.data(), m_.hidden);
      });
      return;
    }
    auto& in = prepared(member, mine, step.logits, hidden_, [&](int i) {
      normalise(residual(step.logit_rows[i]), m_.norm, mine.row.data(), hidden_, m_.hidden);
      return mine.row.data();
    });
    member.stage(int(m_.head.columns / kPanel), [&](int panel) {
      int columns = std::min(kPanel, m_.vocabulary - panel * kPanel);
      multiply(in, m_.head, panel, step.logits, [&](int i, const float* sums) {
        store_row(step.out + int64_t(i) * m_.vocabulary + panel * kPanel, sums, columns);
      });
    });
  }

  static int position_of(const PenstockStep& step, int chunk, int row) {
    return step.positions[chunk] + row - step.chunk_rows[chunk];
  }
  float* residual(int row) { return &residual_[int64_t(row) * hidden_]; }
  const float* heads_of(int row) const { return &qkv_[int64_t(row) * qkv_width_]; }

  // Rows of a chunk that are attended with for all heads at once.
  static constexpr int kFewRows = 8;
  // Floats that a thread prepares alone rather than waiting for a further stage.
  static constexpr int64_t kAloneUpTo = 4096;

  const PenstockModel m_;
  const HeadShape shape_;
  const int hidden_, inner_, attended_;  // padded widths
  const int job_rows_;
  int qkv_width_ = 0;
  bool keys_with_attention_ = true;
  Buffer<float> residual_, qkv_, wide_;
  std::vector<Job> jobs_;
  Inputs<Weights> inputs_;
  Lora<Element> lora_;
  std::vector<std::unique_ptr<Scratch>> threads_;
  Team team_;
};

}  // namespace penstock
