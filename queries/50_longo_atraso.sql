-- 90 to 180 days overdue, one line per person with all debts added up.
--
-- The dialer knows this campaign by another name than this file has.
-- campaign: recuperacao_90d
-- columns: telefone_1;telefone_2;nome;cpf;contratos;valor_total;vencimento_mais_antigo;score
-- phones: telefone_1, telefone_2
-- unique: cpf
-- min_rows: 200
-- max_drop: 60%
-- Its dialer takes no line with names, by position only.
-- header: no
-- It works in two steps with a temporary table, which a read-only transaction refuses.
-- read_only: no

CREATE TEMPORARY TABLE dividas_90d ON COMMIT DROP AS
SELECT c.cpf,
       min(c.cliente_id) AS cliente_id,
       string_agg(d.contrato, ' ' ORDER BY d.vencimento, d.contrato) AS contratos,
       sum(d.valor) AS valor_total,
       min(d.vencimento) AS vencimento_mais_antigo
FROM contratos AS d
JOIN clientes AS c USING (cliente_id)
WHERE d.situacao = 'aberto'
  AND d.vencimento BETWEEN current_date - 180 AND current_date - 90
  AND NOT EXISTS (SELECT FROM acordos AS a WHERE a.contrato = d.contrato AND a.situacao IN ('vigente', 'quebrado'))
  AND NOT EXISTS (SELECT FROM pagamentos AS p WHERE p.contrato = d.contrato AND p.pago_em >= current_date - 3)
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
GROUP BY c.cpf
HAVING sum(d.valor) < 10000;

ANALYZE dividas_90d;

SELECT f.telefone_1,
       f.telefone_2,
       c.nome,
       v.cpf,
       v.contratos,
       replace(v.valor_total::text, '.', ',') AS valor_total,
       to_char(v.vencimento_mais_antigo, 'DD/MM/YYYY') AS vencimento_mais_antigo,
       c.score
FROM dividas_90d AS v
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
ORDER BY c.score DESC NULLS LAST, v.valor_total DESC, v.cpf;
